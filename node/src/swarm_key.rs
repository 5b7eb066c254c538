//! The swarm secret: 32 random bytes that make a machine a member.
//!
//! Nothing uses the secret itself as a key. Each purpose has its own key, derived by blake3 with a
//! context string, so that a key for one purpose says nothing about another, and the public
//! fingerprint says nothing about any.

use std::{fmt, str::FromStr};

/// Starts every printed secret, so that a person sees what it is.
const PREFIX: &str = "p2p-";

/// Crockford's base-32 alphabet in lower case: no `i`, `l`, `o`, `u`, which people misread.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// 256 bits in digits of 5 bits; the last digit carries one bit of the secret.
const SECRET_DIGITS: usize = 52;

/// 20 bits: a mistyped secret passes once in a million.
const CHECKSUM_DIGITS: usize = 4;

/// The secret that the members of a swarm share.
#[derive(Clone, PartialEq, Eq)]
pub struct SwarmSecret([u8; 32]);

/// Why a text isn't a swarm secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The text doesn't start as printed secrets do.
    #[error("a swarm secret starts with `{PREFIX}`")]
    Prefix,
    /// The text is too short or too long, as when only a part was pasted.
    #[error(
        "a swarm secret has {} characters after `{PREFIX}`, this one has {found}",
        SECRET_DIGITS + CHECKSUM_DIGITS
    )]
    Length {
        /// Characters found after the prefix.
        found: usize,
    },
    /// A character outside the alphabet.
    #[error("`{found}` at place {place} after `{PREFIX}` can't be part of a swarm secret")]
    Character {
        /// The character.
        found: char,
        /// Its place after the prefix, from 1.
        place: usize,
    },
    /// The characters are well-formed but don't belong together.
    #[error("the swarm secret was mistyped: its last {CHECKSUM_DIGITS} characters don't match")]
    Checksum,
}

impl SwarmSecret {
    /// A new random secret.
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes);
        Self(bytes)
    }

    /// The secret made of these bytes, which must be unpredictable.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The text to paste on other machines. Whoever has it is a member, so it isn't what `Debug`
    /// prints.
    pub fn reveal(&self) -> String {
        let mut text = String::from(PREFIX);
        push_digits(&mut text, &self.0, SECRET_DIGITS);
        push_digits(&mut text, &checksum(&self.0), CHECKSUM_DIGITS);
        text
    }

    /// Names the swarm in public: the same for all members, and nothing about the secret follows
    /// from it.
    pub fn fingerprint(&self) -> String {
        let mut text = String::new();
        push_digits(&mut text, &self.derive("p2ptrain swarm fingerprint v1"), 8);
        text
    }

    /// Seals gossip.
    pub(crate) fn gossip_key(&self) -> [u8; 32] {
        self.derive("p2ptrain gossip sealing v1")
    }

    /// Makes topic names that a stranger can't guess.
    pub(crate) fn topic_key(&self) -> [u8; 32] {
        self.derive("p2ptrain gossip topics v1")
    }

    /// Proves membership on a bulk connection.
    pub(crate) fn membership_key(&self) -> [u8; 32] {
        self.derive("p2ptrain bulk membership v1")
    }

    /// Bound into the handshake of control connections, which fails unless both sides know it.
    pub(crate) fn control_prologue(&self) -> [u8; 32] {
        self.derive("p2ptrain control prologue v1")
    }

    fn derive(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }
}

impl FromStr for SwarmSecret {
    type Err = SecretError;

    /// Parses what [`SwarmSecret::reveal`] prints; case, surrounding space and the usual
    /// misreadings don't matter.
    fn from_str(text: &str) -> Result<Self, SecretError> {
        let text = text.trim().to_lowercase();
        let digits = text.strip_prefix(PREFIX).ok_or(SecretError::Prefix)?;
        let found = digits.chars().count();
        if found != SECRET_DIGITS + CHECKSUM_DIGITS {
            return Err(SecretError::Length { found });
        }
        let values = digits
            .chars()
            .enumerate()
            .map(|(at, c)| digit(c).ok_or(SecretError::Character { found: c, place: at + 1 }))
            .collect::<Result<Vec<u8>, _>>()?;

        let (secret, check) = values.split_at(SECRET_DIGITS);
        let mut bytes = [0; 32];
        for (at, value) in secret.iter().enumerate() {
            for bit in 0..5 {
                let place = at * 5 + bit;
                let set = value >> (4 - bit) & 1;
                match bytes.get_mut(place / 8) {
                    Some(byte) => *byte |= set << (7 - place % 8),
                    None if set == 0 => {}
                    None => return Err(SecretError::Checksum),
                }
            }
        }
        let mut expected = String::new();
        push_digits(&mut expected, &checksum(&bytes), CHECKSUM_DIGITS);
        let expected: Vec<u8> = expected.chars().filter_map(digit).collect();
        if check != expected { Err(SecretError::Checksum) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Debug for SwarmSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SwarmSecret(fingerprint {})", self.fingerprint())
    }
}

fn checksum(secret: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key("p2ptrain swarm secret checksum v1", secret)
}

/// Appends the first `digits` groups of five bits of `bytes`, padded with zero bits.
fn push_digits(text: &mut String, bytes: &[u8; 32], digits: usize) {
    for at in 0..digits {
        let mut value = 0;
        for bit in 0..5 {
            let place = at * 5 + bit;
            let byte = bytes.get(place / 8).copied().unwrap_or(0);
            value = value << 1 | usize::from(byte >> (7 - place % 8) & 1);
        }
        text.push(char::from(ALPHABET[value]));
    }
}

fn digit(c: char) -> Option<u8> {
    let c = match c {
        'o' => '0',
        'i' | 'l' => '1',
        c => c,
    };
    let at = ALPHABET.iter().position(|a| char::from(*a) == c)?;
    u8::try_from(at).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_secret_parses_back() {
        let secret = SwarmSecret::generate();
        let text = secret.reveal();
        assert_eq!(text.parse(), Ok(secret.clone()));
        assert_eq!(format!("  {}\n", text.to_uppercase()).parse(), Ok(secret.clone()));
        assert_eq!(text.replace('0', "O").replace('1', "l").parse(), Ok(secret));
    }

    #[test]
    fn any_single_mistyped_character_is_noticed() {
        let text = SwarmSecret::from_bytes([7; 32]).reveal();
        for at in PREFIX.len()..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'4' { b'5' } else { b'4' };
            let wrong = String::from_utf8(wrong).expect("ASCII stays ASCII");
            assert_eq!(wrong.parse::<SwarmSecret>(), Err(SecretError::Checksum), "{wrong}");
        }
    }

    #[test]
    fn malformed_text_says_what_is_wrong() {
        let parse = |text: &str| text.parse::<SwarmSecret>();
        let text = SwarmSecret::from_bytes([7; 32]).reveal();
        assert_eq!(parse("hello"), Err(SecretError::Prefix));
        assert_eq!(parse(""), Err(SecretError::Prefix));
        assert_eq!(parse("p2p-"), Err(SecretError::Length { found: 0 }));
        assert_eq!(parse(&text[..50]), Err(SecretError::Length { found: 46 }));
        let wrong = text.replacen(&text[5..6], "!", 1);
        assert!(matches!(parse(&wrong), Err(SecretError::Character { found: '!', .. })));
        assert!(parse("p2p-\u{1F980}").is_err());
    }

    #[test]
    fn debug_output_and_fingerprint_do_not_reveal_the_secret() {
        let secret = SwarmSecret::from_bytes([7; 32]);
        let shown = format!("{secret:?}");
        assert!(!secret.reveal().contains(&secret.fingerprint()));
        assert!(!shown.contains(&secret.reveal()[4..20]));
    }

    #[test]
    fn keys_of_different_purposes_differ() {
        let secret = SwarmSecret::from_bytes([7; 32]);
        let keys = [
            secret.gossip_key(),
            secret.topic_key(),
            secret.membership_key(),
            secret.control_prologue(),
            secret.0,
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[at + 1..].contains(key));
        }
    }
}
