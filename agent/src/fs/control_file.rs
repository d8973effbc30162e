//! `global/pg_control`, with which PostgreSQL says that a checkpoint is done: it always goes through the worker, and
//! nothing of it changes before everything else in the cache is durable.

use std::io;
use std::sync::Arc;

use fuser::{INodeNo, ReplyWrite};

use super::mount_fs::{MountFs, errno};
use crate::cache::node::Node;
use crate::cache::{Ino, ROOT};

const NAME: &str = "pg_control";

impl MountFs {
    /// Whether the number is the control file's, whichever file has its name now.
    pub(super) fn is_control_file(&self, ino: Ino) -> bool {
        let names = self.store().names();
        let global = names
            .lookup(ROOT, "data")
            .and_then(|data| names.lookup(data, "global"));
        global.and_then(|global| names.lookup(global, NAME)) == Some(ino)
    }

    /// Whether a name is the control file's.
    pub(super) fn is_control_name(&self, parent: INodeNo, name: &str) -> bool {
        let names = self.store().names();
        name == NAME
            && names
                .lookup(ROOT, "data")
                .and_then(|data| names.lookup(data, "global"))
                == Some(parent.0)
    }

    /// Writes to the control file, behind the barrier.
    pub(super) fn write_control(
        &self,
        node: Arc<Node>,
        offset: u64,
        data: &[u8],
        reply: ReplyWrite,
    ) {
        let (store, transfer) = (self.store().clone(), self.parts.transfer.clone());
        let data = data.to_vec();
        self.flushes.run(move || {
            let written = || -> io::Result<u32> {
                store.barrier()?;
                transfer.write(&node, offset, &data)?;
                u32::try_from(data.len()).map_err(io::Error::other)
            };
            match written() {
                Ok(count) => reply.written(count),
                Err(error) => {
                    tracing::error!(%error, "write pg_control");
                    reply.error(errno(error));
                }
            }
        });
    }
}
