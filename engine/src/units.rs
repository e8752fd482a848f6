//! Values with a unit: `20/s`, `250ms`, `64KiB`, `1%`. A number without a unit is an error.

use std::fmt;
use std::time::Duration;

/// The longest duration that can be written: ten years. More is a slip of the hand.
pub const DURATION_MAX: Duration = Duration::from_hours(10 * 365 * 24);

const RATE_LIKE: &str = "`20/s`, `600/m` or `10/h`";
const DURATION_LIKE: &str = "`250ms`, `15s`, `10m`, `2h` or `1d`";
const SIZE_LIKE: &str = "`100B`, `64KiB` or `8MiB`";
const PERCENT_LIKE: &str = "`1%` or `0.5%`";

/// Why a text is no value with a unit. The text names the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// A bare number.
    #[error("`{text}` has no unit; write it like {like}")]
    NoUnit {
        /// What was written.
        text: String,
        /// Examples.
        like: &'static str,
    },
    /// Something else altogether, or an unknown unit.
    #[error("`{text}` is not {what}; write it like {like}")]
    Malformed {
        /// What was written.
        text: String,
        /// What was wanted, with its article.
        what: &'static str,
        /// Examples.
        like: &'static str,
    },
    /// A fraction where only whole numbers go.
    #[error("`{text}` has a fraction; write a whole number of a smaller unit, like {like}")]
    Fraction {
        /// What was written.
        text: String,
        /// Examples.
        like: &'static str,
    },
    /// Zero.
    #[error("`{text}` is zero; write at least {least}")]
    Zero {
        /// What was written.
        text: String,
        /// The least that makes sense, or what to do instead.
        least: &'static str,
    },
    /// Below zero.
    #[error("`{text}` is negative; write it like {like}")]
    Negative {
        /// What was written.
        text: String,
        /// Examples.
        like: &'static str,
    },
    /// More than can be.
    #[error("`{text}` is too large; write at most {most}")]
    TooLarge {
        /// What was written.
        text: String,
        /// The most.
        most: &'static str,
    },
}

/// A kind of value with a unit, for the errors that all kinds share.
struct Kind {
    what: &'static str,
    like: &'static str,
    most: &'static str,
}

const RATE: Kind = Kind {
    what: "a rate",
    like: RATE_LIKE,
    most: "`4294967295/s`",
};
const DURATION: Kind = Kind {
    what: "a duration",
    like: DURATION_LIKE,
    most: "`3650d`",
};
const SIZE: Kind = Kind {
    what: "a size",
    like: SIZE_LIKE,
    most: "`1048576GiB`",
};
const PERCENT: Kind = Kind {
    what: "a percentage",
    like: PERCENT_LIKE,
    most: "`100%`",
};

impl Kind {
    /// Splits into a whole number and its unit.
    fn split<'t>(&self, text: &'t str) -> Result<(u64, &'t str), UnitError> {
        let (number, unit) = self.split_text(text)?;
        if number.contains('.') {
            return Err(UnitError::Fraction {
                text: text.to_owned(),
                like: self.like,
            });
        }
        // Only digits are left: what does not parse is too large.
        match number.parse() {
            Ok(number) => Ok((number, unit)),
            Err(_) => Err(self.too_large(text)),
        }
    }

    /// Splits into digits (and at most one point between digits) and a unit that is not empty.
    fn split_text<'t>(&self, text: &'t str) -> Result<(&'t str, &'t str), UnitError> {
        if let Some(rest) = text.strip_prefix('-')
            && rest.starts_with(|letter: char| letter.is_ascii_digit())
        {
            return Err(UnitError::Negative {
                text: text.to_owned(),
                like: self.like,
            });
        }
        let end = text
            .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
            .unwrap_or(text.len());
        let Some((number, unit)) = text.split_at_checked(end) else {
            return Err(self.malformed(text));
        };
        let whole_and_fraction = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole_and_fraction.0) || !digits(whole_and_fraction.1) {
            return Err(self.malformed(text));
        }
        if unit.is_empty() {
            return Err(UnitError::NoUnit {
                text: text.to_owned(),
                like: self.like,
            });
        }
        Ok((number, unit))
    }

    fn malformed(&self, text: &str) -> UnitError {
        UnitError::Malformed {
            text: text.to_owned(),
            what: self.what,
            like: self.like,
        }
    }

    fn too_large(&self, text: &str) -> UnitError {
        UnitError::TooLarge {
            text: text.to_owned(),
            most: self.most,
        }
    }
}

/// Reads a duration such as `250ms`, `15s`, `10m`, `2h` or `1d`; zero is fine.
pub fn parse_duration_or_zero(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = DURATION.split(text)?;
    let millis_per_unit: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(DURATION.malformed(text)),
    };
    number
        .checked_mul(millis_per_unit)
        .map(Duration::from_millis)
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or_else(|| DURATION.too_large(text))
}

/// Reads a duration that is not zero, see [`parse_duration_or_zero`].
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let duration = parse_duration_or_zero(text)?;
    if duration.is_zero() {
        return Err(UnitError::Zero {
            text: text.to_owned(),
            least: "`1ms`",
        });
    }
    Ok(duration)
}

/// Reads a size such as `100B`, `64KiB`, `8MiB` or `1GiB` and returns bytes; zero is an error.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = SIZE.split(text)?;
    let bytes_per_unit: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(SIZE.malformed(text)),
    };
    match number.checked_mul(bytes_per_unit) {
        Some(0) => Err(UnitError::Zero {
            text: text.to_owned(),
            least: "`1B`",
        }),
        Some(bytes) if bytes <= 1 << 50 => Ok(bytes),
        _ => Err(SIZE.too_large(text)),
    }
}

/// Reads a percentage such as `1%` or `0.5%` and returns the ratio, 0 to 1.
pub fn parse_percent(text: &str) -> Result<f64, UnitError> {
    let (number, unit) = PERCENT.split_text(text)?;
    if unit != "%" {
        return Err(PERCENT.malformed(text));
    }
    match number.parse::<f64>() {
        Ok(percent) if percent <= 100.0 => Ok(percent / 100.0),
        Ok(_) => Err(PERCENT.too_large(text)),
        Err(_) => Err(PERCENT.malformed(text)),
    }
}

/// Requests per time; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    requests: u32,
    per: Duration,
}

impl Rate {
    /// Makes a rate of `requests` per `per`, or `None` where either is zero.
    pub const fn new(requests: u32, per: Duration) -> Option<Self> {
        if requests == 0 || per.is_zero() {
            None
        } else {
            Some(Self { requests, per })
        }
    }

    /// Reads a rate such as `20/s`, `600/m` or `10/h`.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        let (requests, unit) = RATE.split(text)?;
        let per = match unit {
            "/s" => Duration::from_secs(1),
            "/m" => Duration::from_mins(1),
            "/h" => Duration::from_hours(1),
            _ => return Err(RATE.malformed(text)),
        };
        let Ok(requests) = u32::try_from(requests) else {
            return Err(RATE.too_large(text));
        };
        Self::new(requests, per).ok_or_else(|| UnitError::Zero {
            text: text.to_owned(),
            least: "`1/h`, or refuse everything with a rule of `action: block`",
        })
    }

    /// Returns the requests of [`Rate::per`]; at least 1.
    pub const fn requests(self) -> u32 {
        self.requests
    }

    /// Returns the time in which the requests come; never zero.
    pub const fn per(self) -> Duration {
        self.per
    }

    /// Returns requests per second.
    pub fn per_second(self) -> f64 {
        f64::from(self.requests) / self.per.as_secs_f64()
    }

    /// Returns the time between two requests at this rate; at least 1 ns.
    pub fn interval(self) -> Duration {
        (self.per / self.requests).max(Duration::from_nanos(1))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.per.as_secs() {
            1 => write!(f, "{}/s", self.requests),
            60 => write!(f, "{}/m", self.requests),
            3600 => write!(f, "{}/h", self.requests),
            _ => write!(f, "{:.3}/s", self.per_second()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_a_unit_are_read() {
        assert_eq!(
            Rate::parse("20/s").unwrap().interval(),
            Duration::from_millis(50)
        );
        assert_eq!(
            Rate::parse("600/m").unwrap().interval(),
            Duration::from_millis(100)
        );
        assert_eq!(Rate::parse("10/h").unwrap().to_string(), "10/h");
        for (text, millis) in [
            ("250ms", 250),
            ("15s", 15_000),
            ("10m", 600_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
        }
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("8MiB"), Ok(8 << 20));
        assert_eq!(parse_size("100B"), Ok(100));
        assert_eq!(parse_percent("0.5%"), Ok(0.005));
        assert_eq!(parse_percent("100%"), Ok(1.0));
    }

    fn rate(text: &str) -> String {
        Rate::parse(text).unwrap_err().to_string()
    }

    fn duration(text: &str) -> String {
        parse_duration(text).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_way_out() {
        for (error, said) in [
            (
                rate("20"),
                "`20` has no unit; write it like `20/s`, `600/m` or `10/h`",
            ),
            (
                rate("20/d"),
                "`20/d` is not a rate; write it like `20/s`, `600/m` or `10/h`",
            ),
            (
                rate("-1/s"),
                "`-1/s` is negative; write it like `20/s`, `600/m` or `10/h`",
            ),
            (
                rate("0/s"),
                "`0/s` is zero; write at least `1/h`, or refuse everything with a rule of `action: block`",
            ),
            (
                rate("0.5/s"),
                "`0.5/s` has a fraction; write a whole number of a smaller unit, like `20/s`, `600/m` or `10/h`",
            ),
            (
                rate("4294967296/s"),
                "`4294967296/s` is too large; write at most `4294967295/s`",
            ),
            (
                rate("99999999999999999999/s"),
                "`99999999999999999999/s` is too large; write at most `4294967295/s`",
            ),
            (
                duration("15"),
                "`15` has no unit; write it like `250ms`, `15s`, `10m`, `2h` or `1d`",
            ),
            (duration("0s"), "`0s` is zero; write at least `1ms`"),
            (
                duration("3651d"),
                "`3651d` is too large; write at most `3650d`",
            ),
            (
                duration("1m30s"),
                "`1m30s` is not a duration; write it like `250ms`, `15s`, `10m`, `2h` or `1d`",
            ),
        ] {
            assert_eq!(error, said);
        }
        for text in [
            "", "/s", "s", ".5/s", "5./s", "1.2.3/s", "１/s", "é", "20/s ", "+1/s",
        ] {
            assert!(Rate::parse(text).is_err(), "{text}");
            assert!(parse_size(text).is_err(), "{text}");
        }
        for text in ["101%", "100.1%", "-1%", "1", "%", "1 %"] {
            assert!(parse_percent(text).is_err(), "{text}");
        }
        for text in ["0B", "1KB", "1k", "99999999GiB", "18446744073709551615GiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
