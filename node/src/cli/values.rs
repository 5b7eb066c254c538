use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

/// A number of bytes as users write it: `512M`, `8GiB`, `1.5G`, `4096`. Units are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => {
                return Err(format!("unknown unit {unit:?}; write for example 512M, 8G or 1.5GiB"));
            }
        };
        let number: f64 =
            number.parse().map_err(|_| "write a size like 512M, 8G or 1.5GiB".to_owned())?;
        let bytes = number * (1_u64 << shift) as f64;
        if !(1.0..=9.0e18).contains(&bytes) {
            return Err("the size must be at least one byte and below 8 EiB".to_owned());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&super::human_bytes(self.0))
    }
}

/// Why a swarm secret given as `@FILE` cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SwarmSecretError {
    /// The file cannot be read.
    #[error("cannot read the swarm secret from {}", .path.display())]
    Unreadable {
        /// The file after the `@`.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// There is no text in it.
    #[error("the swarm secret is empty")]
    Empty,
    /// Two rules for who may join.
    #[error("--swarm and --allow exclude each other: either a secret or a list says who may join")]
    Both,
}

/// The secret itself: `value`, or the first line of the file where it is `@FILE`.
///
/// # Errors
/// Where the file cannot be read, or no text is left.
pub fn resolve_swarm_secret(value: &str) -> Result<String, SwarmSecretError> {
    let text = match value.strip_prefix('@') {
        Some(path) => {
            let path = PathBuf::from(path);
            fs::read_to_string(&path)
                .map_err(|source| SwarmSecretError::Unreadable { path, source })?
        }
        None => value.to_owned(),
    };
    let secret = text.lines().next().unwrap_or_default().trim().to_owned();
    if secret.is_empty() { Err(SwarmSecretError::Empty) } else { Ok(secret) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_users_write_them() {
        for (text, bytes) in [
            ("4096", 4096),
            ("512M", 512 << 20),
            ("8GiB", 8 << 30),
            ("1.5g", 3 << 29),
            ("64 kb", 64 << 10),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "G", "8X", "-1G", "1e400", "0", "99999999T", "1..2"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_comes_from_the_text_or_from_a_file() {
        assert_eq!(resolve_swarm_secret(" abc ").expect("text"), "abc");
        let file = tempfile::NamedTempFile::new().expect("temporary folder is writable");
        fs::write(file.path(), "from-file\nsecond line\n").expect("just created");
        let value = format!("@{}", file.path().display());
        assert_eq!(resolve_swarm_secret(&value).expect("file"), "from-file");
        assert!(matches!(resolve_swarm_secret(""), Err(SwarmSecretError::Empty)));
        assert!(matches!(
            resolve_swarm_secret("@/does/not/exist"),
            Err(SwarmSecretError::Unreadable { .. })
        ));
    }
}
