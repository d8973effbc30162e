//! The names in a directory, compact: there may be very many.

use super::Ino;

/// Names and what each leads to.
#[derive(Debug, Default)]
pub struct Names {
    text: String,
    entries: Vec<Name>,
}

#[derive(Debug, Clone, Copy)]
struct Name {
    start: u32,
    length: u16,
    ino: Ino,
}

impl Names {
    /// Adds a name. One that no directory can have (4 GiB of names before it, 64 KiB long) is left out.
    pub fn push(&mut self, name: &str, ino: Ino) {
        if let (Ok(start), Ok(length)) = (self.text.len().try_into(), name.len().try_into()) {
            self.text.push_str(name);
            self.entries.push(Name { start, length, ino });
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The name of a place, from 0, and what it leads to.
    pub fn get(&self, place: usize) -> Option<(&str, Ino)> {
        let name = self.entries.get(place)?;
        let start = name.start as usize;
        let text = self.text.get(start..start + usize::from(name.length))?;
        Some((text, name.ino))
    }

    /// All of them, in no order that is promised.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Ino)> {
        (0..self.len()).filter_map(|place| self.get(place))
    }
}
