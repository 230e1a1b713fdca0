//! Bytes in pieces -> lines. Pure.

use bytes::BytesMut;

/// The longest line: the largest object that a server stores is 1.5 MB, and some escapes more.
const MAX_LINE: usize = 16 << 20;

/// Lines as they come in.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: BytesMut,
    /// Up to here there is no end of line.
    looked: usize,
}

impl Lines {
    /// Takes more bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line that is not empty.
    ///
    /// # Errors
    /// A line grows beyond all measure.
    pub(super) fn next(&mut self) -> Result<Option<BytesMut>, String> {
        while let Some(end) = self.bytes[self.looked..].iter().position(|byte| *byte == b'\n') {
            let mut line = self.bytes.split_to(self.looked + end + 1);
            self.looked = 0;
            line.truncate(line.len() - 1);
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(line));
            }
        }
        self.looked = self.bytes.len();
        match self.bytes.len() > MAX_LINE {
            true => Err(format!("an event of more than {} MiB", MAX_LINE >> 20)),
            false => Ok(None),
        }
    }

    /// Nothing is left that has no end yet.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.iter().all(u8::is_ascii_whitespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_are_cut() {
        let text = b"one\n\ntwo\r\n three\nrest";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in text.chunks(size) {
                lines.push(piece);
                while let Some(line) = lines.next().unwrap() {
                    found.push(String::from_utf8(line.to_vec()).unwrap().trim().to_owned());
                }
            }
            assert_eq!(found, ["one", "two", "three"]);
            assert!(!lines.is_empty());
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE]);
        assert_eq!(lines.next(), Ok(None));
        lines.push(b"x");
        assert!(lines.next().is_err());
    }
}
