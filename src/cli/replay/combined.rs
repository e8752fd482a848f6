//! Reads a line of Apache's and nginx's `combined` or `common` log. Knows nothing of what the request
//! means: target and headers are taken as they were written.
//!
//! `ADDRESS IDENT USER [10/Oct/2026:13:55:36 +0200] "GET /x?y HTTP/1.1" 200 512 "REFERER" "AGENT"`;
//! what follows is not looked at.

use std::borrow::Cow;
use std::net::IpAddr;

use tidegate_engine::reader::shortened;

use super::entry::{Format, Moment, Unreadable};

/// How a time is written.
const TIME_LIKE: &str = "10/Oct/2026:13:55:36 +0200";
const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CombinedLine<'a> {
    pub(super) format: Format,
    pub(super) at: Moment,
    pub(super) address: IpAddr,
    /// `None` for what was no request: a scan, or a connection without one.
    pub(super) request: Option<RequestLine<'a>>,
    pub(super) referer: Option<Cow<'a, [u8]>>,
    pub(super) user_agent: Option<Cow<'a, [u8]>>,
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RequestLine<'a> {
    pub(super) method: Cow<'a, [u8]>,
    pub(super) target: Cow<'a, [u8]>,
}

impl<'a> CombinedLine<'a> {
    pub(super) fn read(line: &'a [u8]) -> Result<Self, Unreadable> {
        let (address, rest) = split(line, b" ").ok_or(Unreadable::NoLog)?;
        // Identity and user stand between; a user's name may hold spaces.
        let (_, rest) = split(rest, b" [").ok_or(Unreadable::NoLog)?;
        let (time, rest) = split(rest, b"] \"").ok_or(Unreadable::NoLog)?;
        let (request, rest) = quoted(rest).ok_or(Unreadable::NoLog)?;
        let rest = rest.strip_prefix(b" ").ok_or(Unreadable::NoLog)?;
        let is_status = |status: &[u8]| status.len() == 3 && status.iter().all(u8::is_ascii_digit);
        if !rest.get(..3).is_some_and(is_status) {
            return Err(Unreadable::NoLog);
        }
        let at = moment(time).ok_or_else(|| {
            Unreadable::Time(shortened(&String::from_utf8_lossy(time)), TIME_LIKE)
        })?;
        let address = std::str::from_utf8(address)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Unreadable::Address(shortened(&String::from_utf8_lossy(address))))?;
        let fields = split(rest, b" \"").and_then(|(_, rest)| {
            let (referer, rest) = quoted(rest)?;
            let (agent, _) = quoted(rest.strip_prefix(b" \"")?)?;
            Some((referer, agent))
        });
        let (format, referer, user_agent) = match fields {
            Some((referer, agent)) => (Format::Combined, present(referer), present(agent)),
            None => (Format::Common, None, None),
        };
        Ok(Self {
            format,
            at,
            address,
            request: method_and_target(request),
            referer,
            user_agent,
        })
    }
}

/// Splits at the first place where `mark` stands.
fn split<'a>(line: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = memchr::memmem::find(line, mark)?;
    Some((line.get(..at)?, line.get(at + mark.len()..)?))
}

/// Reads to the quotation mark that ends a field, and undoes the escapes of both servers: `\"`, `\\`,
/// `\n`, `\t`, `\r` and `\xhh`.
fn quoted(rest: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let mut end = 0;
    let mut is_escaped = false;
    loop {
        end += memchr::memchr2(b'"', b'\\', rest.get(end..)?)?;
        if rest.get(end) == Some(&b'"') {
            break;
        }
        is_escaped = true;
        end += 2;
    }
    let (field, rest) = (rest.get(..end)?, rest.get(end + 1..)?);
    if !is_escaped {
        return Some((Cow::Borrowed(field), rest));
    }
    Some((Cow::Owned(unescape(field)), rest))
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut bytes = field;
    while let Some((&byte, rest)) = bytes.split_first() {
        bytes = rest;
        let Some((&kind, after)) = rest.split_first().filter(|_| byte == b'\\') else {
            text.push(byte);
            continue;
        };
        bytes = after;
        match kind {
            b'n' => text.push(b'\n'),
            b't' => text.push(b'\t'),
            b'r' => text.push(b'\r'),
            b'x' => {
                let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
                if let (Some(high), Some(low)) = (digit(0), digit(1)) {
                    text.push((high * 16 + low) as u8);
                    bytes = after.get(2..).unwrap_or_default();
                } else {
                    text.extend_from_slice(b"\\x");
                }
            }
            other => text.push(other),
        }
    }
    text
}

/// Returns a field's value; `-` is written for none.
fn present(field: Cow<'_, [u8]>) -> Option<Cow<'_, [u8]>> {
    Some(field).filter(|field| !field.is_empty() && **field != *b"-")
}

/// Takes `GET /x HTTP/1.1` apart.
fn method_and_target(request: Cow<'_, [u8]>) -> Option<RequestLine<'_>> {
    let first = memchr::memchr(b' ', &request)?;
    let last = memchr::memrchr(b' ', &request)?;
    if last <= first || !request.get(last + 1..)?.starts_with(b"HTTP/") {
        return None;
    }
    let (method, target) = match request {
        Cow::Borrowed(text) => (text.get(..first)?.into(), text.get(first + 1..last)?.into()),
        Cow::Owned(text) => (
            text.get(..first)?.to_vec().into(),
            text.get(first + 1..last)?.to_vec().into(),
        ),
    };
    Some(RequestLine { method, target })
}

/// Reads `10/Oct/2026:13:55:36 +0200`.
fn moment(time: &[u8]) -> Option<Moment> {
    let number = |from: usize, digits: usize| {
        let text = time.get(from..from + digits)?;
        text.iter().try_fold(0_i64, |number, byte| {
            byte.is_ascii_digit()
                .then(|| number * 10 + i64::from(byte - b'0'))
        })
    };
    let marks = [
        (2, b'/'),
        (6, b'/'),
        (11, b':'),
        (14, b':'),
        (17, b':'),
        (20, b' '),
    ];
    let is_written_so = marks.iter().all(|(at, mark)| time.get(*at) == Some(mark));
    if time.len() != TIME_LIKE.len() || !is_written_so {
        return None;
    }
    let name = time.get(3..6)?;
    let month = 1 + MONTHS.chunks(3).position(|month| month == name)? as i64;
    let (day, year) = (number(0, 2)?, number(7, 4)?);
    let (hour, minute, second) = (number(12, 2)?, number(15, 2)?, number(18, 2)?);
    let offset = 60 * (60 * number(22, 2)? + number(24, 2)?);
    let offset = match time.get(21)? {
        b'+' => offset,
        b'-' => -offset,
        _ => return None,
    };
    let is_time = (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    let seconds = 86_400 * days(year, month, day) + 3600 * hour + 60 * minute + second - offset;
    let nanos = u64::try_from(seconds).ok()?.checked_mul(1_000_000_000)?;
    is_time.then_some(Moment(nanos))
}

/// Returns the days from 1970-01-01 to a date of the Gregorian calendar (H. Hinnant,
/// `chrono`-compatible low-level date algorithms, `days_from_civil`). Years begin in March, so that
/// the leap day is the last of its year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str) -> Result<String, String> {
        let line = CombinedLine::read(line.as_bytes()).map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        let request = line
            .request
            .map(|request| (text(&request.method), text(&request.target)));
        let agent = line.user_agent.map(|agent| text(&agent));
        Ok(format!(
            "{:?} {} {} {request:?} {agent:?}",
            line.format, line.at, line.address
        ))
    }

    #[test]
    fn both_formats_of_both_servers_are_read() {
        for (line, expected) in [
            (
                r#"192.0.2.7 - frank [10/Oct/2000:13:55:36 -0700] "GET /a.gif HTTP/1.0" 200 2326"#,
                r#"Common 2000-10-10T20:55:36Z 192.0.2.7 Some(("GET", "/a.gif")) None"#,
            ),
            (
                r#"2001:db8::1 - a b [29/Feb/2024:00:00:00 +0000] "POST /x?app=a HTTP/2.0" 200 - "-" "Mozilla \"x\" \x22\\" "1.2.3.4""#,
                r#"Combined 2024-02-29T00:00:00Z 2001:db8::1 Some(("POST", "/x?app=a")) Some("Mozilla \\\"x\\\" \\\"\\\\")"#,
            ),
            (
                r#"192.0.2.7 - - [01/Mar/2024:00:00:00 +0530] "\x16\x03\x01" 400 150 "-" "-""#,
                "Combined 2024-02-29T18:30:00Z 192.0.2.7 None None",
            ),
            (
                r#"192.0.2.7 - - [01/Mar/2024:00:00:00 +0000] "-" 408 - "-" "-""#,
                "Combined 2024-03-01T00:00:00Z 192.0.2.7 None None",
            ),
        ] {
            assert_eq!(read(line).as_deref(), Ok(expected), "{line}");
        }
    }

    #[test]
    fn what_is_no_line_is_said() {
        for (line, expected) in [
            ("", "no line of an access log"),
            ("hello", "no line of an access log"),
            (
                r#"a - - [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.0" OK"#,
                "no line",
            ),
            (
                r#"a - - [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.0"#,
                "no line",
            ),
            (
                r#"a - - [10/Okt/2000:13:55:36 -0700] "GET / HTTP/1.0" 200 1"#,
                "not a time",
            ),
            (
                r#"a - - [10/Oct/1900:13:55:36 -0700] "GET / HTTP/1.0" 200 1"#,
                "not a time",
            ),
            (
                r#"a - - [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.0" 200 1"#,
                "`a` is not an address",
            ),
        ] {
            let said = read(line).unwrap_err();
            assert!(said.contains(expected), "{line}: {said}");
        }
    }

    proptest! {
        /// The slow, obvious way to count days.
        #[test]
        fn days_are_counted_like_humantime_does(seconds in 0..4_102_444_800_u64) {
            let wall = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            let text = humantime::format_rfc3339_seconds(wall).to_string();
            let parts: Vec<&str> = text.split(['-', 'T', 'Z']).collect();
            let [year, month, day, time, ""] = *parts.as_slice() else {
                panic!("{text} is written in another way");
            };
            let month: usize = month.parse().unwrap();
            let name = MONTHS.chunks(3).nth(month - 1).unwrap().escape_ascii();
            let line = format!("{day}/{name}/{year}:{time} +0000");
            prop_assert_eq!(moment(line.as_bytes()), Some(Moment(seconds * 1_000_000_000)));
        }

        #[test]
        fn whatever_stands_in_a_line_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(CombinedLine::read(&bytes));
            let mut line = br#"192.0.2.7 - - [01/Mar/2024:00:00:00 +0000] ""#.to_vec();
            line.extend_from_slice(&bytes);
            drop(CombinedLine::read(&line));
        }
    }
}
