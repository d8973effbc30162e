use super::*;
use common::agent::buffers::Buffers;
use common::agent::hand::PROTOCOL_VERSION;
use common::agent::pages::PageFrame;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::read_frame;

const KIB: u64 = 1024;

/// Pieces whose backup answers each question with bytes that tell their place; `refuse` says which it refuses first.
struct Scene {
    blocks: Arc<Blocks>,
    questions: Arc<Mutex<Vec<(u64, u32)>>>,
    arrived: Arrived,
    arrivals: Arc<AtomicU64>,
}

fn byte_at(at: u64) -> u8 {
    u8::try_from(at / 8192 % 251).unwrap()
}

fn scene(wait: Duration, mut refuse: Option<bool>) -> Scene {
    let base = Arc::new(Base::new(7, wait));
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let attached = base.clone();
    std::thread::spawn(move || attached.attach(ours));
    let questions: Arc<Mutex<Vec<(u64, u32)>>> = Arc::default();
    let heard = questions.clone();
    std::thread::spawn(move || {
        let (protocol, tree_hash) = (PROTOCOL_VERSION, 7);
        let hello = PageFrame::Hello {
            protocol,
            tree_hash,
        };
        theirs.write_all(&hello.encode()).unwrap();
        while let Ok(PageFrame::Read {
            request,
            offset,
            length,
            ..
        }) = read_frame(&mut theirs, &Buffers::new(1))
        {
            heard.lock().unwrap().push((offset, length));
            let answer = match refuse.take() {
                Some(permanent) => PageFrame::Failed {
                    request,
                    permanent,
                    message: "refused".to_owned(),
                },
                None => PageFrame::Data {
                    request,
                    bytes: (offset..offset + u64::from(length))
                        .map(byte_at)
                        .collect::<Vec<u8>>()
                        .into(),
                },
            };
            theirs.write_all(&answer.encode()).unwrap();
        }
    });
    let arrivals: Arc<AtomicU64> = Arc::default();
    let counted = arrivals.clone();
    Scene {
        blocks: Arc::new(Blocks::new(base)),
        questions,
        arrived: Arc::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        }),
        arrivals,
    }
}

fn span(start: u64, end: u64) -> Span {
    Span {
        file: 3,
        start: start * KIB,
        end: end * KIB,
    }
}

impl Scene {
    fn get(&self, wanted: Span, around: Span) -> Result<Vec<Arc<Fetched>>, BaseError> {
        self.blocks.get(wanted, around, &self.arrived, Who::Reader)
    }
}

fn is_covered(pieces: &[Arc<Fetched>], wanted: Span) -> bool {
    (wanted.start / 8192..wanted.end / 8192).all(|granule| {
        crate::cache::content::granule_in(pieces, granule, 8192)
            .is_some_and(|bytes| bytes.iter().all(|byte| *byte == byte_at(granule * 8192)))
    })
}

#[test]
fn what_is_here_or_coming_is_asked_for_once() {
    let scene = scene(Duration::from_secs(20), None);
    scene.blocks.want(span(64, 128), &scene.arrived);
    let wanted = span(0, 3000);
    let pieces = scene.get(wanted, wanted).unwrap();
    assert!(is_covered(&pieces, wanted));
    assert!(is_covered(
        &scene.blocks.find(span(100, 2000)).unwrap(),
        span(104, 2000)
    ));
    assert!(scene.blocks.find(span(2900, 3001)).is_none());
    scene.get(wanted, wanted).unwrap();
    let mut asked = scene.questions.lock().unwrap().clone();
    asked.sort_unstable();
    let total: u64 = asked.iter().map(|(_, length)| u64::from(*length)).sum();
    assert_eq!(total, 3000 * KIB, "{asked:?}");
    assert!(
        asked
            .iter()
            .all(|(_, length)| u64::from(*length) <= PIECE_BYTES_MAX)
    );
}

#[test]
fn a_piece_that_is_kept_elsewhere_and_those_beyond_the_limit_are_forgotten() {
    let scene = scene(Duration::from_secs(20), None);
    let first = span(0, 64);
    let piece = scene.get(first, first).unwrap().remove(0);
    scene.blocks.forget(3, &piece);
    assert!(scene.blocks.find(first).is_none());
    for number in 0..2 * HERE_BYTES_MAX / PIECE_BYTES_MAX {
        let wanted = span(number * 1024, number * 1024 + 1024);
        scene.get(wanted, wanted).unwrap();
    }
    assert!(scene.blocks.lock().here_bytes <= HERE_BYTES_MAX);
    assert!(scene.blocks.find(span(0, 1024)).is_none());
    // Told on the thread that receives, so that the last one may still be on its way.
    assert!(scene.arrivals.load(Ordering::Relaxed) >= 2 * HERE_BYTES_MAX / PIECE_BYTES_MAX);
}

#[test]
fn a_piece_that_readers_have_had_whole_in_any_order_is_forgotten_and_no_other() {
    let scene = scene(Duration::from_secs(20), None);
    scene.get(span(0, 2048), span(0, 2048)).unwrap();
    let elsewhere = Span {
        file: 2,
        ..span(0, 2048)
    };
    scene.blocks.note_served(elsewhere);
    scene.blocks.note_served(span(512, 1024));
    scene.blocks.note_served(span(1024, 1536));
    assert!(scene.blocks.find(span(0, 2048)).is_some());
    scene.blocks.note_served(span(0, 512));
    assert!(scene.blocks.find(span(0, 8)).is_none());
    assert!(scene.blocks.find(span(1024, 2048)).is_some());
    scene.blocks.note_served(span(1536, 4096));
    assert!(scene.blocks.find(span(1024, 1032)).is_none());
    assert_eq!(scene.blocks.lock().here_bytes, 0);
}

#[test]
fn a_refusal_for_good_reaches_one_reader_and_the_next_one_asks_again() {
    let scene = scene(Duration::from_secs(20), Some(true));
    let wanted = span(0, 64);
    let refused = scene.get(wanted, wanted).unwrap_err();
    assert_eq!(refused, BaseError::Permanent("refused".to_owned()));
    assert!(is_covered(&scene.get(wanted, wanted).unwrap(), wanted));
}

#[test]
fn a_refusal_for_now_is_asked_again_without_the_reader_noticing() {
    let scene = scene(Duration::from_secs(20), Some(false));
    let wanted = span(0, 64);
    assert!(is_covered(&scene.get(wanted, wanted).unwrap(), wanted));
}

#[test]
fn who_has_waited_for_too_long_gives_up_and_no_longer_counts_as_waiting() {
    let blocks = Arc::new(Blocks::new(Arc::new(Base::new(
        7,
        Duration::from_millis(50),
    ))));
    let nothing: Arrived = Arc::new(|_| {});
    let wanted = span(0, 64);
    let late = blocks
        .get(wanted, wanted, &nothing, Who::Reader)
        .unwrap_err();
    assert_eq!(late, BaseError::TimedOut(Duration::from_millis(50)));
    assert_eq!(blocks.waiting_for(), None);
    assert!(blocks.lock().pieces.is_empty());
}
