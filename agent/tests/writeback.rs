//! Data goes to the disk between flushes too, a bounded amount at a time.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test may panic")]

mod chance;
mod volatile_disk;

use std::sync::Arc;

use agent::cache::namespace::Owner;
use agent::cache::node::Node;
use agent::cache::record::NodeKind;
use agent::cache::store::{NewNode, Store, StoreParts};
use agent::cache::tree::Tree;
use agent::cache::writeback::Cursor;
use agent::cache::{Ino, ROOT};
use volatile_disk::VolatileDisk;

const MIB: u64 = 1 << 20;
const OWNER: Owner = Owner { user: 1, group: 1 };

fn store(disk: &Arc<VolatileDisk>) -> Store {
    Store::open(StoreParts {
        tree: Arc::new(Tree::from_entries(&[]).unwrap()),
        disk: disk.clone(),
        runtime: tempfile::tempfile().unwrap(),
        owner: OWNER,
    })
    .unwrap()
}

fn create(store: &Store, name: &str) -> Arc<Node> {
    let new = NewNode {
        parent: ROOT,
        name,
        mode: 0o600,
        owner: OWNER,
        unique: 0,
    };
    let ino = store.create(new, NodeKind::File).unwrap().ino;
    store.node(ino).unwrap()
}

fn bytes(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(_, length)| length).sum()
}

#[test]
fn what_was_written_goes_to_the_disk_before_it_is_flushed_a_bounded_amount_at_a_time() {
    let disk = Arc::new(VolatileDisk::default());
    let store = store(&disk);
    // Written through the worker; written by the kernel; thrown away anyway; written by nobody.
    let small = create(&store, "small");
    let large = create(&store, "large");
    let sort = create(&store, "pgsql_tmp1.0");
    let idle = create(&store, "idle");
    store.write(&small, 0, &[1; 8192], &[]).unwrap();
    store.write(&sort, 0, &[1; 8192], &[]).unwrap();
    store.opened(&large, &mut large.lock(), Some(1), 0).unwrap();
    store.truncate(&large, 300 * MIB).unwrap();

    let mut cursor = Cursor::default();
    let mut rounds = Vec::new();
    for _ in 0..2 {
        cursor = store.write_back(cursor).unwrap();
        let of = |ino: Ino| bytes(&disk.take_written_back(ino));
        rounds.push([of(small.ino), of(large.ino), of(sort.ino), of(idle.ino)]);
    }
    let most = rounds.iter().map(|round| round.iter().sum::<u64>()).max();
    assert!(most.unwrap() <= 256 * MIB, "{rounds:?}");
    let sum = |of: usize| -> u64 { rounds.iter().filter_map(|round| round.get(of)).sum() };
    assert_eq!([sum(0), sum(1), sum(2), sum(3)], [8192, 300 * MIB, 0, 0]);

    // What is flushed and not open needs nothing more.
    store.sync(&small).unwrap();
    store.barrier().unwrap();
    assert_eq!(cursor, Cursor::default(), "the round is closed");
    store.write_back(cursor).unwrap();
    assert_eq!(bytes(&disk.take_written_back(small.ino)), 0);
    assert!(bytes(&disk.take_written_back(large.ino)) > 0);
}
