//! WAL positions as PostgreSQL writes them.

/// A WAL position `X/X` as a number of bytes; `None` when the text is none.
pub fn position(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let part = |hex: &str| u32::from_str_radix(hex, 16).ok();
    Some(u64::from(part(high)?) << 32 | u64::from(part(low)?))
}

#[cfg(test)]
mod tests {
    use super::position;

    #[test]
    fn a_wal_position_is_a_number_of_bytes() {
        for (text, bytes) in [
            ("0/3000060", Some(0x300_0060)),
            ("1/0", Some(1 << 32)),
            ("FFFFFFFF/FFFFFFFF", Some(u64::MAX)),
            ("", None),
            ("1", None),
            ("1/x", None),
            ("100000000/0", None),
        ] {
            assert_eq!(position(text), bytes, "{text}");
        }
    }
}
