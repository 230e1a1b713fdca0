//! A vector in pieces: it grows without moving what it holds. A table of a million entries that doubles leaves half of itself
//! behind for the allocator, and has half of the new one still to fill.

use std::ops::{Index, IndexMut};

/// Entries in a piece. The first one grows like any vector: most tables are small.
const PIECE: usize = 1024;

#[derive(Debug)]
pub(super) struct Chunks<T> {
    pieces: Vec<Vec<T>>,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Chunks { pieces: Vec::new() }
    }
}

impl<T> Chunks<T> {
    pub(super) fn len(&self) -> usize {
        match self.pieces.split_last() {
            Some((last, full)) => full.len() * PIECE + last.len(),
            None => 0,
        }
    }

    pub(super) fn push(&mut self, entry: T) {
        match self.pieces.last_mut() {
            Some(last) if last.len() < PIECE => last.push(entry),
            last => {
                let mut piece = if last.is_some() { Vec::with_capacity(PIECE) } else { Vec::new() };
                piece.push(entry);
                self.pieces.push(piece);
            }
        }
    }
}

impl<T> Index<u32> for Chunks<T> {
    type Output = T;

    #[inline]
    fn index(&self, at: u32) -> &T {
        &self.pieces[at as usize / PIECE][at as usize % PIECE]
    }
}

impl<T> IndexMut<u32> for Chunks<T> {
    #[inline]
    fn index_mut(&mut self, at: u32) -> &mut T {
        &mut self.pieces[at as usize / PIECE][at as usize % PIECE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_across_pieces_and_stay_where_they_are() {
        let mut all = Chunks::default();
        assert_eq!(all.len(), 0);
        for n in 0..PIECE as u32 {
            all.push(n);
        }
        let first: *const u32 = &all[0];
        for n in PIECE as u32..3 * PIECE as u32 + 1 {
            all.push(n);
        }
        assert_eq!(all.len(), 3 * PIECE + 1);
        assert!((0..all.len() as u32).all(|n| all[n] == n));
        assert!(std::ptr::eq(first, &all[0]));
        all[2000] = 7;
        assert_eq!((all[1999], all[2000], all[2001]), (1999, 7, 2001));
    }
}
