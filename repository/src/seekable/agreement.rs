//! For tests and fuzzing: whether it is the same from wherever decoding begins.

use std::sync::Arc;

use super::codec::{Codec, Resume, ResumeState, Step};
use super::{Stored, decode_from};

/// Most places that are tried.
const PLACE_COUNT_MAX: usize = 64;

/// Decodes a stream as far as that goes, to `size_max` bytes or the end of its first member or frame, then again from each place in it.
/// The number of places if all agree, else `None`; what the stream is worth does not matter.
pub fn places_that_agree(codec: Codec, stored: Vec<u8>, size_max: usize) -> Option<usize> {
    let stored: Arc<dyn Stored> = Arc::new(stored);
    let Ok(mut decoder) = codec.decoder(Arc::clone(&stored), Resume::BEGINNING, &[]) else {
        return Some(0);
    };
    let mut decoded = Vec::new();
    let mut places = Vec::new();
    let mut buffer = [0; 4096];
    while decoded.len() < size_max {
        match decoder.step(&mut buffer) {
            Ok(Step::Bytes(count)) => decoded.extend_from_slice(buffer.get(..count)?),
            Ok(Step::Place(Resume {
                state: ResumeState::Start,
                ..
            })) => break,
            Ok(Step::Place(place)) if places.len() < PLACE_COUNT_MAX => {
                places.push((place, decoded.len()));
            }
            Ok(Step::Place(_)) => {}
            Ok(Step::End) | Err(_) => break,
        }
    }
    for (place, at) in &places {
        let (before, wanted) = decoded.split_at_checked(*at)?;
        let surplus = before.len().saturating_sub(place.window_bytes());
        let window = before.get(surplus..)?;
        let again = decode_from(codec, Arc::clone(&stored), *place, window, wanted.len());
        if again.ok()? != wanted {
            return None;
        }
    }
    Some(places.len())
}
