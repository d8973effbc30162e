//! The literals of Python that Barman writes where a value is no plain text: strings, numbers, and lists of tuples of these.

/// Deepest nesting; Barman's lists of tablespaces have two levels.
const DEPTH_MAX: usize = 4;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Literal {
    Text(String),
    Number(i64),
    /// A list or a tuple.
    List(Vec<Literal>),
    /// `None`, `True` and what else is a bare word.
    Word(String),
}

/// Reads one literal; none if it is not one.
pub(super) fn parse_literal(text: &str) -> Option<Literal> {
    let mut rest = text.trim();
    let found = value(&mut rest, DEPTH_MAX)?;
    rest.trim().is_empty().then_some(found)
}

fn value(rest: &mut &str, depth_left: usize) -> Option<Literal> {
    *rest = rest.trim_start();
    match rest.chars().next()? {
        quote @ ('\'' | '"') => {
            *rest = rest.get(1..)?;
            string(rest, quote).map(Literal::Text)
        }
        '[' => list(rest, ']', depth_left.checked_sub(1)?),
        '(' => list(rest, ')', depth_left.checked_sub(1)?),
        _ => {
            let end = rest.find([',', ']', ')']).unwrap_or(rest.len());
            let (word, behind) = rest.split_at_checked(end)?;
            *rest = behind;
            let word = word.trim();
            let is_bare = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '+' | '.');
            if !word.chars().all(is_bare) {
                return None;
            }
            let number = word.parse().ok().map(Literal::Number);
            number.or_else(|| (!word.is_empty()).then(|| Literal::Word(word.to_owned())))
        }
    }
}

fn list(rest: &mut &str, end: char, depth_left: usize) -> Option<Literal> {
    *rest = rest.get(1..)?;
    let mut items = Vec::new();
    loop {
        *rest = rest.trim_start();
        if let Some(behind) = rest.strip_prefix(end) {
            *rest = behind;
            return Some(Literal::List(items));
        }
        items.push(value(rest, depth_left)?);
        *rest = rest.trim_start();
        match rest.strip_prefix(',') {
            Some(behind) => *rest = behind,
            None if rest.starts_with(end) => {}
            None => return None,
        }
    }
}

fn string(rest: &mut &str, quote: char) -> Option<String> {
    let mut text = String::new();
    let mut characters = rest.chars();
    loop {
        match characters.next()? {
            found if found == quote => break,
            '\\' => text.push(match characters.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'x' => coded(&mut characters, 2)?,
                'u' => coded(&mut characters, 4)?,
                'U' => coded(&mut characters, 8)?,
                itself @ ('\\' | '\'' | '"') => itself,
                _ => return None,
            }),
            plain => text.push(plain),
        }
    }
    *rest = characters.as_str();
    Some(text)
}

fn coded(characters: &mut std::str::Chars<'_>, digit_count: usize) -> Option<char> {
    let mut code = 0_u32;
    for _ in 0..digit_count {
        code = code.checked_mul(16)? | characters.next()?.to_digit(16)?;
    }
    char::from_u32(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_read_as_python_writes_them() {
        let text = |text: &str| Literal::Text(text.to_owned());
        let one = Literal::List(vec![text("o'ne"), Literal::Number(16384), text("/srv/ä b")]);
        for (literal, wanted) in [
            ("'a\\nb\\\\'", text("a\nb\\")),
            ("\"it's\"", text("it's")),
            ("'\\x1b\\u00e4'", text("\u{1b}ä")),
            ("None", Literal::Word("None".to_owned())),
            ("[]", Literal::List(vec![])),
            (
                "[(\"o'ne\", 16384, '/srv/ä b')]",
                Literal::List(vec![one.clone()]),
            ),
            (
                "[ ( \"o'ne\" ,16384, '/srv/ä b', ) ]",
                Literal::List(vec![one]),
            ),
        ] {
            assert_eq!(parse_literal(literal), Some(wanted), "{literal}");
        }
    }

    #[test]
    fn what_is_no_literal_is_none() {
        let deep = "[".repeat(100_000);
        for bad in [
            "",
            "'",
            "'a",
            "[",
            "[1",
            "(1]",
            "'\\q'",
            "'\\x1'",
            "'\\ud800'",
            "1 2]",
            "[1 'a']",
            &deep,
        ] {
            assert_eq!(parse_literal(bad), None, "{}", bad.len());
        }
    }
}
