//! A TOML table whose every complaint names its line.

use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{BLOCK_BYTES, NAME_BYTES_MAX, Refusal, VOLUME_BYTES_MAX, size};

/// A refusal and the line that it is about.
pub(super) struct Refused {
    pub(super) line: usize,
    pub(super) refusal: Box<Refusal>,
}

pub(super) type Result<T> = std::result::Result<T, Refused>;

/// A value and where it stands.
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// A table with what its refusals need.
pub(super) struct Table<'t> {
    pub(super) text: &'t str,
    pub(super) place: &'static str,
    pub(super) span: Range<usize>,
    pub(super) table: &'t DeTable<'t>,
}

impl<'t> Table<'t> {
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        line_of(self.text, span.start)
    }

    pub(super) fn refuse<T>(&self, span: &Range<usize>, refusal: Refusal) -> Result<T> {
        Err(Refused {
            line: line_of(self.text, span.start),
            refusal: Box::new(refusal),
        })
    }

    /// Refuses every key that is not one of `known`.
    pub(super) fn only(&self, known: &[&'static str]) -> Result<()> {
        // The first in the file is the one to name; the map is sorted by name.
        let unknown = self
            .table
            .keys()
            .filter(|key| !known.contains(&key.get_ref().as_ref()));
        let Some(key) = unknown.min_by_key(|key| key.span().start) else {
            return Ok(());
        };
        let place = self.place;
        let name = key.get_ref().to_string();
        let nearest = known
            .iter()
            .map(|known| (distance(&name, known), *known))
            .min();
        self.refuse(
            &key.span(),
            match nearest {
                Some((distance, nearest)) if distance <= 1 + nearest.len() / 4 => {
                    Refusal::UnknownKeyNear {
                        key: name,
                        place,
                        nearest,
                    }
                }
                _ => Refusal::UnknownKey {
                    key: name,
                    place,
                    known: known.join(", "),
                },
            },
        )
    }

    pub(super) fn get(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.get(key)
    }

    pub(super) fn missing<T>(&self, key: &'static str, example: &'static str) -> Result<T> {
        self.refuse(
            &self.span,
            Refusal::Missing {
                place: self.place,
                key,
                example,
            },
        )
    }

    pub(super) fn wrong_type<T>(
        &self,
        key: &'static str,
        value: &Spanned<DeValue<'_>>,
        example: &'static str,
    ) -> Result<T> {
        let found = match value.get_ref() {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) => "a number",
            DeValue::Float(_) => "a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.refuse(
            &value.span(),
            Refusal::WrongType {
                key,
                found,
                example,
            },
        )
    }

    pub(super) fn opt_text(
        &self,
        key: &'static str,
        example: &'static str,
    ) -> Result<Option<Located<&'t str>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.get_ref() {
            DeValue::String(text) => Ok(Some(Located {
                value: text.as_ref(),
                span: value.span(),
            })),
            _ => self.wrong_type(key, value, example),
        }
    }

    pub(super) fn text(
        &self,
        key: &'static str,
        example: &'static str,
    ) -> Result<Located<&'t str>> {
        match self.opt_text(key, example)? {
            Some(text) => Ok(text),
            None => self.missing(key, example),
        }
    }

    pub(super) fn name(
        &self,
        key: &'static str,
        example: &'static str,
    ) -> Result<(String, Range<usize>)> {
        let name = self.text(key, example)?;
        let first_ok = name
            .value
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        let all_ok = name
            .value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !first_ok || !all_ok || name.value.len() > NAME_BYTES_MAX {
            let found = name.value.chars().take(80).collect();
            return self.refuse(&name.span, Refusal::BadName { key, found });
        }
        Ok((name.value.to_owned(), name.span))
    }

    pub(super) fn opt_integer(
        &self,
        key: &'static str,
        example: &'static str,
    ) -> Result<Option<Located<i128>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let DeValue::Integer(integer) = value.get_ref() else {
            return self.wrong_type(key, value, example);
        };
        match i128::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => Ok(Some(Located {
                value: number,
                span: value.span(),
            })),
            Err(_) => self.wrong_type(key, value, example),
        }
    }

    pub(super) fn opt_bool(
        &self,
        key: &'static str,
        example: &'static str,
    ) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.get_ref().as_bool() {
                Some(flag) => Ok(Some(flag)),
                None => self.wrong_type(key, value, example),
            },
        }
    }

    pub(super) fn opt_size(
        &self,
        key: &'static str,
        example: &'static str,
    ) -> Result<Option<Located<u64>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let span = value.span();
        let bytes = match value.get_ref() {
            DeValue::String(text) => size::parse(text),
            DeValue::Integer(_) => match self.opt_integer(key, example)? {
                Some(n) => u64::try_from(n.value).map_err(|_| match n.value {
                    negative @ ..0 => size::SizeError::Negative(negative),
                    huge => size::SizeError::TooLarge(huge.to_string()),
                }),
                None => return Ok(None),
            },
            _ => return self.wrong_type(key, value, example),
        };
        match bytes {
            Err(source) => self.refuse(&span, Refusal::Size { key, source }),
            Ok(bytes) if !bytes.is_multiple_of(BLOCK_BYTES) => {
                self.refuse(&span, Refusal::SizeUnaligned { key, bytes })
            }
            Ok(bytes) if bytes > VOLUME_BYTES_MAX => {
                self.refuse(&span, Refusal::TooLarge { key, bytes })
            }
            Ok(value) => Ok(Some(Located { value, span })),
        }
    }

    pub(super) fn size(&self, key: &'static str, example: &'static str) -> Result<Located<u64>> {
        match self.opt_size(key, example)? {
            Some(size) => Ok(size),
            None => self.missing(key, example),
        }
    }

    /// A section, if it is there: `example` is "a table [key]", and its place is called "[key]".
    pub(super) fn section(
        &self,
        key: &'static str,
        example: &'static str,
    ) -> Result<Option<Table<'t>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.get_ref() {
            DeValue::Table(table) => Ok(Some(Table {
                text: self.text,
                place: example.trim_start_matches("a table "),
                span: value.span(),
                table,
            })),
            _ => self.wrong_type(key, value, example),
        }
    }

    /// The tables under `[[key]]`; at least one.
    pub(super) fn tables(&self, key: &'static str, place: &'static str) -> Result<Vec<Table<'t>>> {
        let end = self.text.len()..self.text.len();
        let Some(value) = self.get(key) else {
            return self.refuse(&end, Refusal::None { what: key });
        };
        let DeValue::Array(array) = value.get_ref() else {
            return self.wrong_type(key, value, place);
        };
        if array.is_empty() {
            return self.refuse(&value.span(), Refusal::None { what: key });
        }
        array
            .iter()
            .map(|value| match value.get_ref() {
                DeValue::Table(table) => Ok(Table {
                    text: self.text,
                    place,
                    span: value.span(),
                    table,
                }),
                _ => self.wrong_type(key, value, place),
            })
            .collect()
    }

    pub(super) fn opt_address(&self, key: &'static str) -> Result<Option<Located<SocketAddr>>> {
        let Some(text) = self.opt_text(key, "an address such as \"10.0.0.1:7789\"")? else {
            return Ok(None);
        };
        let found = text.value.to_owned();
        match text.value.parse::<SocketAddr>() {
            Err(_) => self.refuse(&text.span, Refusal::BadAddress { key, found }),
            Ok(address) if address.port() == 0 => {
                self.refuse(&text.span, Refusal::PortZero { key, found })
            }
            Ok(value) => Ok(Some(Located {
                value,
                span: text.span,
            })),
        }
    }

    /// A number of milliseconds.
    pub(super) fn milliseconds(
        &self,
        key: &'static str,
        example: &'static str,
        range: RangeInclusive<u32>,
        default: u32,
    ) -> Result<Duration> {
        let ms = match self.opt_integer(key, example)? {
            None => default,
            Some(located) => match u32::try_from(located.value) {
                Ok(ms) if range.contains(&ms) => ms,
                _ => {
                    let found = located.value;
                    let (least, most) = range.into_inner();
                    return self.refuse(
                        &located.span,
                        Refusal::OutOfRange {
                            key,
                            found,
                            least,
                            most,
                        },
                    );
                }
            },
        };
        Ok(Duration::from_millis(ms.into()))
    }

    /// A path that is the same on every node.
    pub(super) fn path(&self, key: &'static str, located: &Located<&str>) -> Result<PathBuf> {
        if located.value.starts_with('/') && !located.value.contains('\0') {
            return Ok(PathBuf::from(located.value));
        }
        let found = located.value.to_owned();
        self.refuse(&located.span, Refusal::BadPath { key, found })
    }

    /// A path with `%n` replaced by the node's name.
    pub(super) fn expand(
        &self,
        key: &'static str,
        located: &Located<&str>,
        node: &str,
    ) -> Result<PathBuf> {
        let found = || located.value.to_owned();
        let mut path = String::new();
        let mut chars = located.value.chars();
        while let Some(c) = chars.next() {
            match c {
                '%' => match chars.next() {
                    Some('n') => path.push_str(node),
                    Some('%') => path.push('%'),
                    _ => {
                        return self.refuse(
                            &located.span,
                            Refusal::BadPercent {
                                key,
                                found: found(),
                            },
                        );
                    }
                },
                '\0' => {
                    return self.refuse(
                        &located.span,
                        Refusal::BadPath {
                            key,
                            found: found(),
                        },
                    );
                }
                c => path.push(c),
            }
        }
        if !path.starts_with('/') {
            return self.refuse(
                &located.span,
                Refusal::BadPath {
                    key,
                    found: found(),
                },
            );
        }
        Ok(PathBuf::from(path))
    }
}

/// The line of a byte, counted from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    let end = at.min(text.len());
    let lines = 1 + text.as_bytes()[..end]
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count();
    // Past the last newline there is no line to name.
    lines.min(text.lines().count().max(1))
}

/// How many letters have to be changed, added, removed or swapped to make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let differs = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1)
                .min(row[j - 1] + 1)
                .min(rows[i - 1][j - 1] + differs);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
