#![no_main]
//! No bytes may panic the reader of Barman's `backup.info`, nor that of the Python literals in it, which is reached only in a file
//! that is sound otherwise.

use libfuzzer_sys::fuzz_target;
use repository::barman::{Status, parse_backup_info};

const REST: &[u8] = b"status=DONE\nmode=rsync\nxlog_segment_size=16777216\ntimeline=1\n\
    begin_xlog=0/2000028\nend_xlog=0/2000138\ntablespaces=";

fuzz_target!(|data: &[u8]| {
    for content in [data.to_vec(), [REST, data].concat()] {
        if let Ok(Status::Usable(info)) = parse_backup_info(&content, "backup.info") {
            assert!(info.begin_lsn < info.end_lsn && info.timeline > 0);
        }
    }
});
