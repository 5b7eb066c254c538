use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

use super::IpcError;

/// Reads up to and without the next newline; `None` at the end of the stream. A line over `limit`
/// is refused before more than one buffer beyond the limit was read.
pub(super) async fn read_line<R: AsyncBufRead + Unpin>(
    reader: &mut R,
    limit: usize,
) -> Result<Option<Vec<u8>>, IpcError> {
    let mut line = Vec::new();
    loop {
        // A reset is the usual end of a killed client or node.
        let buffer = reader.fill_buf().await.map_err(|_| IpcError::Closed)?;
        if buffer.is_empty() {
            return if line.is_empty() { Ok(None) } else { Err(IpcError::Closed) };
        }
        let newline = buffer.iter().position(|&byte| byte == b'\n');
        let end = newline.unwrap_or(buffer.len());
        if line.len() + end > limit {
            return Err(IpcError::TooLong { limit });
        }
        line.extend_from_slice(&buffer[..end]);
        let used = end + usize::from(newline.is_some());
        reader.consume(used);
        if newline.is_some() {
            return Ok(Some(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_split_bounded_and_must_be_complete() {
        let mut input: &[u8] = b"one\n\ntwo";
        assert_eq!(read_line(&mut input, 3).await.expect("fits"), Some(b"one".to_vec()));
        assert_eq!(read_line(&mut input, 3).await.expect("fits"), Some(Vec::new()));
        assert!(matches!(read_line(&mut input, 3).await, Err(IpcError::Closed)));
        let mut input: &[u8] = b"";
        assert_eq!(read_line(&mut input, 3).await.expect("end"), None);
        let mut input: &[u8] = b"four\n";
        assert!(matches!(read_line(&mut input, 3).await, Err(IpcError::TooLong { limit: 3 })));
    }
}
