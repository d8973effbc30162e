//! Barman's backups of one server, read in place (Barman 3.4 to 3.19, as far as tests go), and what its programs for clouds put into buckets.
//!
//! A backup is a data directory or tar archives as `pg_basebackup` leaves them, with its tablespaces beside it; `backup.info` says how
//! it stands. The WAL that its recovery needs is not in it, but in the server's archive.

mod backup_info;
mod layout;
mod python_literal;
mod repository;
mod server;
mod wal;
mod wal_storage;

pub use backup_info::{BackupInfo, Status, parse_backup_info};
pub use repository::{open_barman, open_barman_in};
