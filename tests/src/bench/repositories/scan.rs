//! Files that are compressed whole, read by the reader from beginning to end, against the codec alone on the same stored files. Both have
//! as many threads as there are processors.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use repository::Backup;

use super::first_query::processor_count;
use super::reads::{Subject, TableFile};
use crate::bench::line::Ledger;
use crate::bench::plan::repositories::scan_name;
use crate::bench::stage::Stage;

/// Bytes per read of either side.
const READ_BYTES: usize = 1 << 20;

pub(super) fn measure(
    stage: &mut Stage,
    ledger: &mut Ledger,
    subject: &Subject,
    files: &[TableFile],
) -> Result<()> {
    let codec = subject.layout;
    let name = scan_name(codec);
    if !ledger.wants(&name) {
        return Ok(());
    }
    let stored = subject.stored.as_deref().context("a repository")?;
    let backup = (subject.open)()?;
    stage.drop_caches();
    ledger.ours(&name, speed(files, |file| read(&*backup, file))?);
    drop(backup);
    stage.drop_caches();
    let decoded = speed(files, |file| {
        let path = stored.join(format!("{}.{codec}", file.path));
        decode(&path, codec)
    })?;
    ledger.peer(&name, decoded);
    Ok(())
}

/// MiB a second over all files; `work` gives the bytes of one.
fn speed(files: &[TableFile], work: impl Fn(&TableFile) -> Result<u64> + Sync) -> Result<f64> {
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut bytes = 0;
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let count = work(file)?;
            ensure!(
                count == file.size_bytes,
                "{} has {count} bytes and not {}",
                file.path,
                file.size_bytes
            );
            bytes += count;
        }
        anyhow::Ok(bytes)
    };
    let bytes = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..processor_count())
            .map(|_| scope.spawn(worker))
            .collect();
        let mut all = 0;
        for worker in workers {
            all += worker.join().map_err(|_| anyhow!("a reader panicked"))??;
        }
        anyhow::Ok(all)
    })?;
    let mib = u32::try_from(bytes >> 20)?;
    Ok(f64::from(mib) / began.elapsed().as_secs_f64())
}

fn read(backup: &dyn Backup, file: &TableFile) -> Result<u64> {
    let index = file.index_in(backup)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut done = 0;
    loop {
        match backup.read_at(index, done, &mut buffer)? {
            0 => return Ok(done),
            count => done += count as u64,
        }
    }
}

fn decode(path: &Path, codec: &str) -> Result<u64> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let file = BufReader::with_capacity(READ_BYTES, file);
    let mut decoder: Box<dyn Read> = match codec {
        "gz" => Box::new(flate2::bufread::GzDecoder::new(file)),
        "lz4" => Box::new(lz4_flex::frame::FrameDecoder::new(file)),
        "zst" => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
        other => bail!("no codec {other}"),
    };
    let mut buffer = vec![0; READ_BYTES];
    let mut done = 0;
    loop {
        match decoder.read(&mut buffer)? {
            0 => return Ok(done),
            count => done += count as u64,
        }
    }
}
