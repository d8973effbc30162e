//! What was opened last of a repository: when its backups are gone through one after the other, each needs most of what the one before
//! it needed.

use std::cell::RefCell;
use std::sync::Arc;

/// The backups of one chain, by their labels; of one and not of all, so that memory does not grow with the repository.
#[derive(Debug)]
pub(crate) struct LastChain<T> {
    kept: RefCell<Vec<(String, Arc<T>)>>,
}

impl<T> LastChain<T> {
    pub(crate) fn new() -> Self {
        Self {
            kept: RefCell::default(),
        }
    }

    /// The backup of a label: the one that is kept, else opened now.
    pub(crate) fn get<E>(
        &self,
        label: &str,
        open: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let known = self.kept.borrow();
        if let Some((_, found)) = known.iter().find(|(of, _)| of == label) {
            return Ok(Arc::clone(found));
        }
        drop(known);
        open().map(Arc::new)
    }

    /// Keeps this chain, and forgets the one before.
    pub(crate) fn keep(&self, chain: impl IntoIterator<Item = (String, Arc<T>)>) {
        let chain = chain.into_iter().collect();
        let forgotten = self.kept.replace(chain);
        drop(forgotten);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_backup_of_a_chain_is_opened_once_and_one_chain_is_kept() {
        let opened = RefCell::new(Vec::new());
        let last = LastChain::new();
        let describe = |chain: &[&str]| {
            let layers: Vec<_> = chain
                .iter()
                .map(|label| {
                    let open = || {
                        opened.borrow_mut().push((*label).to_owned());
                        Ok::<_, ()>(())
                    };
                    ((*label).to_owned(), last.get(label, open).unwrap())
                })
                .collect();
            last.keep(layers);
        };
        for chain in [&["a"][..], &["b", "a"], &["c", "b", "a"], &["b", "a"]] {
            describe(chain);
        }
        assert_eq!(opened.borrow().join(""), "abc");
        describe(&["x"]);
        describe(&["b", "a"]);
        assert_eq!(opened.borrow().join(""), "abcxba");
    }
}
