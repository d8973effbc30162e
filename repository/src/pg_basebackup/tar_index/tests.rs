use super::*;

/// A header as tar writes it, with its checksum.
fn header(name: &str, kind: u8, size: &str) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000600");
    block[124..124 + size.len()].copy_from_slice(size.as_bytes());
    block[136..147].copy_from_slice(b"00000000007");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(content: &[u8]) -> Vec<u8> {
    let mut block = content.to_vec();
    block.resize(content.len().next_multiple_of(512), 0);
    block
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    let size = format!("{:011o}", content.len());
    [header(name, b'0', &size), padded(content)].concat()
}

fn extension(kind: u8, content: &[u8]) -> Vec<u8> {
    let size = format!("{:011o}", content.len());
    [header("ext", kind, &size), padded(content)].concat()
}

fn ended(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), vec![0; 1024]].concat()
}

fn index(archive: &[u8]) -> Result<Vec<Member>, RepositoryError> {
    let mut members = Vec::new();
    let mut source = archive;
    read_tar_index(&mut source, "base.tar", &Limits::default(), &mut |member| {
        members.push(member);
        Ok(())
    })?;
    Ok(members)
}

fn names(archive: &[u8]) -> Vec<String> {
    let members = index(archive).unwrap();
    members.into_iter().map(|member| member.name).collect()
}

#[test]
fn members_are_found_with_sizes_modes_times_and_places() {
    let archive = ended(&[
        header("./base/", b'5', "0"),
        file("base/1", b"abc"),
        file("x", b""),
    ]);
    let members = index(&archive).unwrap();
    assert_eq!(members.len(), 3);
    assert_eq!(
        (members[0].name.as_str(), &members[0].kind),
        ("base", &MemberKind::Directory)
    );
    assert_eq!(members[1].kind, MemberKind::File(3));
    assert_eq!(members[1].offset, 1024);
    assert_eq!((members[1].mode, members[1].modified_at_s), (0o600, 7));
    assert_eq!(members[2].offset, 1024 + 512 + 512);
}

#[test]
fn long_names_of_gnu_and_pax_and_ustar_prefixes_are_understood() {
    let long = "d/".repeat(20) + &"n".repeat(150);
    let record = |key: &str, value: &str| {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len();
        while length != format!("{length}{rest}").len() {
            length = format!("{length}{rest}").len();
        }
        format!("{length}{rest}")
    };
    let gnu = extension(b'L', format!("{long}\0").as_bytes());
    assert_eq!(names(&ended(&[gnu, file("cut", b"")])), [long.as_str()]);
    let pax = extension(
        b'x',
        (record("path", &long) + &record("size", "3")).as_bytes(),
    );
    let mut member = header("cut", b'0', "00000000000");
    member.extend(padded(b"abc"));
    let archive = ended(&[pax, member, file("after", b"")]);
    let members = index(&archive).unwrap();
    assert_eq!(members[0].name, long);
    assert_eq!(members[0].kind, MemberKind::File(3));
    assert_eq!(members[1].name, "after");
    let mut prefixed = header("name", b'0', "0");
    prefixed[345..348].copy_from_slice(b"dir");
    seal(&mut prefixed);
    assert_eq!(names(&ended(&[prefixed])), ["dir/name"]);
}

#[test]
fn a_size_in_base_256_is_understood() {
    let mut block = header("big", b'0', "");
    block[124] = 0x80;
    block[134..136].copy_from_slice(&[2, 0]);
    seal(&mut block);
    let archive = ended(&[block, vec![1; 512]]);
    assert_eq!(index(&archive).unwrap()[0].kind, MemberKind::File(512));
}

#[test]
fn damaged_archives_are_refused_by_name() {
    let good = ended(&[file("base/1", b"abc")]);
    let mut flipped = good.clone();
    flipped[3] ^= 1;
    let mut huge = header("huge", b'0', "");
    huge[124..136].fill(0xFF);
    seal(&mut huge);
    let mut over = header("over", b'0', "");
    over[124] = 0x80;
    over[129] = 1;
    seal(&mut over);
    let mut not_utf8 = header("x", b'0', "0");
    not_utf8[0] = 0xFF;
    seal(&mut not_utf8);
    let table: &[(Vec<u8>, &str)] = &[
        (vec![], "base.tar"),
        (good[..512].to_vec(), "base/1"),
        (good[..1024].to_vec(), "base.tar"),
        (good[..1536].to_vec(), "base.tar"),
        (good[..1100].to_vec(), "base.tar"),
        (flipped, "base.tar"),
        (ended(&[huge]), "huge"),
        (ended(&[over]), "over"),
        (ended(&[not_utf8]), "base.tar: \u{FFFD}"),
        (ended(&[header("link", b'1', "0")]), "link"),
        (ended(&[header("dev", b'3', "0")]), "dev"),
        (ended(&[header("pipe", b'6', "0")]), "pipe"),
        (ended(&[header("sparse", b'S', "0")]), "sparse"),
        (ended(&[header("odd", b'Z', "0")]), "odd"),
        (ended(&[header("dir", b'5', "00000001000")]), "dir"),
        (ended(&[extension(b'x', b"99 path=x\n")]), "base.tar"),
        (ended(&[extension(b'x', b"0 \n")]), "base.tar"),
        (
            ended(&[extension(b'x', b"11 size=-1\n"), file("a", b"")]),
            "base.tar",
        ),
        (
            ended(&[extension(b'g', b"10 path=x\n"), file("a", b"")]),
            "base.tar",
        ),
        (ended(&[extension(b'L', b"name\0")]), "base.tar"),
        (ended(&[extension(b'L', &[b'a'; 5000])]), "base.tar"),
    ];
    for (archive, wanted) in table {
        let error = index(archive).unwrap_err();
        assert!(error.is_permanent(), "{error}");
        assert_eq!(error.file(), *wanted, "{error}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_the_index(mut archive in proptest::collection::vec(proptest::num::u8::ANY, 0..3000)) {
        let _refused = index(&archive);
        if archive.len() >= 512 {
            seal(&mut archive[..512]);
            let _any = index(&archive);
        }
    }
}
