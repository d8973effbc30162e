//! Sizes, durations and times as people read them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// What stands for something that is not known or not there.
pub(crate) const NOTHING: &str = "-";

/// `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    let mut unit = "KiB";
    // In tenths of the unit, so that nothing is rounded up to 1024.0.
    let mut tenths = u128::from(bytes) * 10 / 1_024;
    for next in UNITS.into_iter().skip(1) {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1_024;
        unit = next;
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// `0.4 s`, `3 min 05 s`, `2 h 03 min`.
pub(crate) fn duration_ms(milliseconds: u64) -> String {
    let seconds = milliseconds / 1_000;
    match seconds {
        0..60 => format!("{}.{} s", seconds, milliseconds % 1_000 / 100),
        60..3_600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3_600, seconds / 60 % 60),
    }
}

/// A time in the zone, to the second.
pub(crate) fn time(at: Timestamp, zone: &TimeZone) -> String {
    let zoned = at.to_zoned(zone.clone());
    zoned.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The time of the day in the zone, to the second.
pub(crate) fn time_of_day(at: Timestamp, zone: &TimeZone) -> String {
    let zoned = at.to_zoned(zone.clone());
    zoned.strftime("%H:%M:%S").to_string()
}

/// A value, or the sign for none.
pub(crate) fn or_nothing<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        let table = [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.0 KiB"),
            (1_536, "1.5 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1_048_576, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (3 << 40, "3.0 TiB"),
            (u64::MAX, "16383.9 PiB"),
        ];
        for (bytes, expected) in table {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn durations_are_readable() {
        let table = [
            (0, "0.0 s"),
            (449, "0.4 s"),
            (12_300, "12.3 s"),
            (185_000, "3 min 05 s"),
            (7_380_000, "2 h 03 min"),
        ];
        for (milliseconds, expected) in table {
            assert_eq!(duration_ms(milliseconds), expected);
        }
    }
}
