//! What somebody reads on and on is not copied while he reads.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test may panic"
)]

mod mount_support;

use std::fs;
use std::time::Duration;

use common::agent::hand::{Hydrate, MountOptions};
use mount_support::{Fixture, wait_for};

const LARGE_BYTES: usize = 32 << 20;
const LIMIT: Duration = Duration::from_secs(60);

fn content() -> Vec<u8> {
    (0..LARGE_BYTES).map(|at| (at / 8192 % 251) as u8).collect()
}

fn fixture() -> Fixture {
    let mut fixture = Fixture::new("root", |directory| {
        fs::write(directory.join("large"), content()).unwrap();
    });
    fixture.serve();
    fixture
}

#[test]
fn a_file_that_is_read_on_and_on_is_left_to_the_hydrator() {
    let fixture = fixture();
    // One step, and then not another for days.
    let hardly = MountOptions {
        hydrate: Hydrate::Touched,
        hydrate_bytes_per_s: 1,
        ..MountOptions::default()
    };
    fixture.mount(&hardly).unwrap();
    assert!(fs::read(fixture.data().join("large")).unwrap() == content());
    let copied = fixture.status().statistics.copied_bytes;
    assert!(copied < (LARGE_BYTES / 4) as u64, "{copied} bytes");
    fixture.unmount();

    let options = MountOptions {
        hydrate: Hydrate::Touched,
        ..MountOptions::default()
    };
    fixture.mount(&options).unwrap();
    assert!(fs::read(fixture.data().join("large")).unwrap() == content());
    wait_for("all is copied afterwards", LIMIT, || {
        fixture.status().statistics.copied_bytes >= LARGE_BYTES as u64
    });
    fixture.unmount();
}

#[test]
fn without_a_hydrator_what_is_read_on_and_on_is_kept() {
    let fixture = fixture();
    let options = MountOptions {
        hydrate: Hydrate::None,
        ..MountOptions::default()
    };
    fixture.mount(&options).unwrap();
    assert!(fs::read(fixture.data().join("large")).unwrap() == content());
    // Not all: what comes faster than it can be kept is let go.
    wait_for("most is kept", LIMIT, || {
        fixture.status().statistics.copied_bytes > (LARGE_BYTES / 2) as u64
    });
    fixture.unmount();
}
