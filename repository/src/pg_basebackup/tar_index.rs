//! Where the files of a tar archive are: one pass forwards over the headers, no contents.
//!
//! ustar with GNU long names, pax paths and sizes, and base-256 numbers. Links, devices and sparse files are not for a backup.

use std::collections::BTreeMap;

use crate::name::utf8_name;
use crate::{Limits, RepositoryError};

const BLOCK: u64 = 512;
const HEADER_BYTES: usize = 512;
/// Largest pax header: a path, a size and times are far below it.
const PAX_BYTES_MAX: u64 = 64 * 1024;

/// An archive that is read forwards, with gaps: no call asks for what lies before the offset of an earlier one.
pub trait ReadAt {
    /// Fills the buffer, fewer bytes only at the end.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, RepositoryError>;
    /// Whether there are at least so many bytes.
    fn reaches(&mut self, end: u64) -> Result<bool, RepositoryError>;
}

impl ReadAt for &[u8] {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, RepositoryError> {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.len());
        let rest = self.get(start..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }
    fn reaches(&mut self, end: u64) -> Result<bool, RepositoryError> {
        Ok(end <= self.len() as u64)
    }
}

/// A member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name, without `./` in front and `/` at the end; not checked otherwise.
    pub name: String,
    /// What it is.
    pub kind: MemberKind,
    /// Permission bits.
    pub mode: u32,
    /// When it was last changed, in seconds since 1970.
    pub modified_at_s: i64,
    /// First byte of its content in the archive.
    pub offset: u64,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file of this many bytes.
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link, and where it leads.
    Symlink(String),
}

/// Reads the headers of `archive`, called `name` in errors, and hands each member to `found`.
pub fn read_tar_index(
    archive: &mut dyn ReadAt,
    name: &str,
    limits: &Limits,
    found: &mut dyn FnMut(Member) -> Result<(), RepositoryError>,
) -> Result<(), RepositoryError> {
    let mut scan = Scan {
        archive,
        name,
        limits,
        position: 0,
        count: 0,
    };
    let mut overrides = Overrides::default();
    while let Some(header) = scan.next_header()? {
        let kind = header.kind();
        match kind {
            b'L' => overrides.path = Some(scan.long_text(&header)?),
            b'K' => overrides.link = Some(scan.long_text(&header)?),
            b'x' => scan.pax(&header, &mut overrides)?,
            // A global header could rename every member; one that only comments (git's) is passed over.
            b'g' => {
                let mut global = Overrides::default();
                scan.pax(&header, &mut global)?;
                if !global.is_empty() {
                    return Err(scan.corrupt("a global header sets names or sizes"));
                }
            }
            _ => {
                let overrides = std::mem::take(&mut overrides);
                if let Some(member) = scan.member(&header, kind, overrides)? {
                    found(member)?;
                }
            }
        }
    }
    if !overrides.is_empty() {
        return Err(scan.corrupt("a long name belongs to no member"));
    }
    Ok(())
}

/// What extension headers say about the member that follows them.
#[derive(Debug, Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size_bytes: Option<u64>,
    modified_at_s: Option<i64>,
}

impl Overrides {
    fn is_empty(&self) -> bool {
        self.path.is_none() && self.link.is_none() && self.size_bytes.is_none()
    }
}

struct Scan<'a> {
    archive: &'a mut dyn ReadAt,
    name: &'a str,
    limits: &'a Limits,
    /// Of the next header.
    position: u64,
    /// Headers read.
    count: u64,
}

impl Scan<'_> {
    fn corrupt(&self, reason: impl Into<String>) -> RepositoryError {
        let reason = format!(
            "at byte {} of the archive: {}",
            self.position,
            reason.into()
        );
        RepositoryError::corrupt(self.name, reason)
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, RepositoryError> {
        self.archive.read_at(offset, buffer)
    }

    /// The next header; none at the end mark.
    fn next_header(&mut self) -> Result<Option<Header>, RepositoryError> {
        let mut block = [0; HEADER_BYTES];
        if self.read(self.position, &mut block)? < block.len() {
            return Err(self.corrupt("the archive ends here without an end mark, it is truncated"));
        }
        if block.iter().all(|byte| *byte == 0) {
            if self.read(self.position + BLOCK, &mut block)? < block.len() {
                return Err(self.corrupt("the end mark is cut short, the archive is truncated"));
            }
            if block.iter().any(|byte| *byte != 0) {
                return Err(self.corrupt("a lone zero block where an end mark should be"));
            }
            return Ok(None);
        }
        let header = Header(block);
        if !header.checksum_fits() {
            return Err(self.corrupt("the checksum of a header is wrong"));
        }
        self.count += 1;
        // Extension headers count too: at most four stand before a member of ours.
        if self.count > self.limits.entry_count.saturating_mul(4) {
            return Err(self.corrupt("the archive has too many members"));
        }
        Ok(Some(header))
    }

    /// Moves past a content of this size and returns where it begins.
    fn skip(&mut self, size_bytes: u64, what: &str) -> Result<u64, RepositoryError> {
        let offset = self.position + BLOCK;
        let end = size_bytes
            .checked_next_multiple_of(BLOCK)
            .and_then(|padded| offset.checked_add(padded));
        if let Some(end) = end {
            let reaches = self.archive.reaches(end);
            if reaches.map_err(|error| error.within(what))? {
                self.position = end;
                return Ok(offset);
            }
        }
        let reason = format!("{} ends before the file does, it is truncated", self.name);
        Err(RepositoryError::corrupt(what, reason))
    }

    fn content(&mut self, header: &Header, size_max: u64) -> Result<Vec<u8>, RepositoryError> {
        let size_bytes = header.size().unwrap_or(u64::MAX);
        if size_bytes > size_max {
            return Err(self.corrupt("an extension header has an absurd size"));
        }
        let mut content = vec![0; usize::try_from(size_bytes).unwrap_or(0)];
        if self.read(self.position + BLOCK, &mut content)? < content.len() {
            return Err(self.corrupt("the archive is truncated"));
        }
        self.skip(size_bytes, self.name)?;
        Ok(content)
    }

    fn long_text(&mut self, header: &Header) -> Result<Vec<u8>, RepositoryError> {
        let mut text = self.content(header, self.limits.path_bytes as u64 + 2)?;
        if text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }

    fn pax(&mut self, header: &Header, overrides: &mut Overrides) -> Result<(), RepositoryError> {
        let content = self.content(header, PAX_BYTES_MAX)?;
        let records = pax_records(&content);
        let records = records.ok_or_else(|| self.corrupt("a pax header cannot be read"))?;
        for (key, value) in records {
            let number = || std::str::from_utf8(value).ok();
            match key {
                b"path" => overrides.path = Some(value.to_vec()),
                b"linkpath" => overrides.link = Some(value.to_vec()),
                b"size" => {
                    let digits = number().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
                    let size = digits.and_then(|text| text.parse().ok());
                    let size = size.ok_or_else(|| self.corrupt("a pax size is no number"))?;
                    overrides.size_bytes = Some(size);
                }
                b"mtime" => {
                    let seconds = number().and_then(|text| text.split('.').next()?.parse().ok());
                    let seconds =
                        seconds.ok_or_else(|| self.corrupt("a pax mtime is no number"))?;
                    overrides.modified_at_s = Some(seconds);
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(self.corrupt("sparse members have no place in a backup"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The member; none for the root directory itself.
    fn member(
        &mut self,
        header: &Header,
        kind: u8,
        overrides: Overrides,
    ) -> Result<Option<Member>, RepositoryError> {
        let full = overrides.path.unwrap_or_else(|| header.path());
        let mut name = utf8_name(&full, self.name)?;
        while let Some(rest) = name.strip_prefix("./") {
            name = rest;
        }
        let is_directory = kind == b'5' || (matches!(kind, b'0' | 0) && name.ends_with('/'));
        if is_directory {
            name = name.strip_suffix('/').unwrap_or(name);
        }
        let bad_number = |what: &str| {
            RepositoryError::corrupt(name, format!("its {what} in {} is no number", self.name))
        };
        let size_bytes = match overrides.size_bytes {
            Some(size_bytes) => size_bytes,
            None => header.size().ok_or_else(|| bad_number("size"))?,
        };
        let mode = header.mode().ok_or_else(|| bad_number("mode"))?;
        let modified_at_s = match overrides.modified_at_s {
            Some(seconds) => seconds,
            None => header
                .modified_at_s()
                .ok_or_else(|| bad_number("modification time"))?,
        };
        let member_kind = match kind {
            _ if is_directory => MemberKind::Directory,
            b'0' | 0 | b'7' => MemberKind::File(size_bytes),
            b'2' => {
                let target = overrides.link.unwrap_or_else(|| header.link());
                MemberKind::Symlink(utf8_name(&target, self.name)?.to_owned())
            }
            kind => {
                let what = match kind {
                    b'1' => "a hard link",
                    b'3' | b'4' => "a device",
                    b'6' => "a named pipe",
                    b'S' => "a sparse file",
                    _ => "of an unknown kind",
                };
                let reason = format!("is {what} in {}, which has no place in a backup", self.name);
                return Err(RepositoryError::corrupt(name, reason));
            }
        };
        let stored_bytes = match member_kind {
            MemberKind::File(size_bytes) => size_bytes,
            MemberKind::Directory | MemberKind::Symlink(_) if size_bytes != 0 => {
                let reason = format!("is no file, but has content in {}", self.name);
                return Err(RepositoryError::corrupt(name, reason));
            }
            MemberKind::Directory | MemberKind::Symlink(_) => 0,
        };
        if stored_bytes > self.limits.file_bytes {
            let reason = format!("a size of {stored_bytes} bytes is over the limit");
            return Err(RepositoryError::corrupt(name, reason));
        }
        let offset = self.skip(stored_bytes, name)?;
        if is_directory && matches!(name, "" | ".") {
            return Ok(None);
        }
        Ok(Some(Member {
            name: name.to_owned(),
            kind: member_kind,
            mode,
            modified_at_s,
            offset,
        }))
    }
}

/// `<length> <key>=<value>\n`, where the length counts itself. The last value of a key wins.
fn pax_records(mut content: &[u8]) -> Option<BTreeMap<&[u8], &[u8]>> {
    let mut records = BTreeMap::new();
    while !content.is_empty() {
        let space = content.iter().take(20).position(|byte| *byte == b' ')?;
        let digits = content
            .get(..space)
            .filter(|d| d.iter().all(u8::is_ascii_digit))?;
        let length: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
        let record = content.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        records.insert(record.get(..equals)?, record.get(equals + 1..)?);
        content = content.get(length..)?;
    }
    Some(records)
}

struct Header([u8; HEADER_BYTES]);

impl Header {
    fn field(&self, start: usize, length: usize) -> &[u8] {
        self.0.get(start..start + length).unwrap_or_default()
    }

    fn text(&self, start: usize, length: usize) -> Vec<u8> {
        let field = self.field(start, length);
        field
            .iter()
            .copied()
            .take_while(|byte| *byte != 0)
            .collect()
    }

    fn kind(&self) -> u8 {
        self.field(156, 1).first().copied().unwrap_or(0)
    }

    /// The name, with ustar's prefix where the header is one of POSIX (GNU headers keep times there).
    fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = self.text(345, 155);
        if self.field(257, 6) != b"ustar\0" || prefix.is_empty() {
            return name;
        }
        [prefix.as_slice(), b"/", name.as_slice()].concat()
    }

    fn link(&self) -> Vec<u8> {
        self.text(157, 100)
    }

    fn size(&self) -> Option<u64> {
        number(self.field(124, 12))
    }

    fn mode(&self) -> Option<u32> {
        number(self.field(100, 8)).and_then(|mode| u32::try_from(mode & 0o7777).ok())
    }

    fn modified_at_s(&self) -> Option<i64> {
        i64::try_from(number(self.field(136, 12))?).ok()
    }

    /// The sum of all bytes, the checksum's own taken as spaces.
    fn checksum_fits(&self) -> bool {
        let bytes: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        let own: u64 = self.field(148, 8).iter().map(|byte| u64::from(*byte)).sum();
        number(self.field(148, 8)) == Some(bytes - own + 8 * u64::from(b' '))
    }
}

/// An octal number, or GNU's base 256 if the highest bit is set. Negative and over-long ones are none.
fn number(field: &[u8]) -> Option<u64> {
    let (&first, rest) = field.split_first()?;
    if first == 0x80 {
        return rest.iter().try_fold(0_u64, |value, byte| {
            Some(value.checked_mul(256)? | u64::from(*byte))
        });
    }
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    let digits = field.get(..end)?.trim_ascii();
    digits.iter().try_fold(0_u64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(*byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
#[path = "tar_index/tests.rs"]
mod tests;
