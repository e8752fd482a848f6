//! What the detector knows as bytes, to be kept across a restart: what is normal, what clients usually
//! send, who is known. Rules and incidents are not among it.
//!
//! Little-endian: a magic word, a version, a fingerprint of the schema, then sections with a tag and a
//! length each (unknown ones are skipped, so that there can be more), and a checksum over all. Values are
//! in it as keyed hashes only: worth nothing without the key, and nothing under another key. At most
//! 3 MiB of sketches (49,152 × 64 B), 1.9 MiB of clients (2 × 8,192 × 120 B), 2 MiB of who is known.

use std::time::Duration;

use super::Detector;
use super::pattern::Literal;
use super::reference::Reference;
use super::usual::{Tally, Usual};
use crate::time::unix_seconds;
use crate::traffic::{COLUMNS_MAX, Columns, KNOWN_WORDS, LeafKey};

const MAGIC: u64 = u64::from_le_bytes(*b"TGDETECT");
const VERSION: u16 = 1;

/// The most bytes of a snapshot that are read.
pub const BYTES_MAX: usize = 8 << 20;

/// How old a snapshot may be for its level to be still the one to expect.
const LEVEL_KEPT: Duration = Duration::from_mins(10);

/// Why a snapshot was not taken over. The detector then knows what it knew before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// It does not begin as a snapshot does.
    #[error("not a snapshot of the detector")]
    NoSnapshot,
    /// Another version of the program wrote it.
    #[error("of format {0}, and this program reads {VERSION}")]
    Version(u16),
    /// The checksum is wrong, or a number makes no sense.
    #[error("damaged")]
    Damaged,
    /// The attributes that take part are others.
    #[error("learnt with other attributes than `identity` names now")]
    OtherAttributes,
}

/// What the sections hold.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Tag {
    Level = 1,
    Season = 2,
    Anchors = 3,
    Leaves = 4,
    Day = 5,
    Instances = 6,
    Addresses = 7,
    Familiar = 8,
}

const TAGS: [Tag; 8] = [
    Tag::Level,
    Tag::Season,
    Tag::Anchors,
    Tag::Leaves,
    Tag::Day,
    Tag::Instances,
    Tag::Addresses,
    Tag::Familiar,
];

impl Detector {
    /// Returns what the detector knows, for [`Detector::restore`]. Takes some milliseconds.
    pub fn snapshot(&self) -> Vec<u8> {
        let columns = self.columns.len();
        let mut out = Writer::default();
        out.u64(MAGIC);
        out.bytes(&VERSION.to_le_bytes());
        out.u64(fingerprint(&self.schema, &self.columns));
        let reference = &self.reference;
        out.section(Tag::Level, |out| {
            let now = self.window.newest().map(|tick| tick.until);
            let wall = now.and_then(|now| reference.season().wall(now));
            out.f64(wall.map_or(0.0, unix_seconds));
            for number in reference.numbers() {
                out.f64(number);
            }
        });
        out.section(Tag::Season, |out| {
            for level in reference.season().slots() {
                out.f32(f64::from(*level));
            }
        });
        out.section(Tag::Anchors, |out| {
            for (literal, anchor) in reference.growth().anchors() {
                out.bytes(&[literal.column as u8]);
                out.bytes(&literal.value.to_le_bytes());
                out.f32(anchor);
            }
        });
        for (tag, sketch) in [Tag::Leaves, Tag::Day]
            .into_iter()
            .zip(reference.sketches())
        {
            out.section(tag, |out| {
                for (_, key, count) in sketch.iter() {
                    out.key(key, columns);
                    out.f32(count);
                }
            });
        }
        for (tag, usual) in [
            (Tag::Instances, &self.instances),
            (Tag::Addresses, &self.addresses),
        ] {
            out.section(tag, |out| {
                for (who, tallies) in usual.rows() {
                    out.key(&who, columns);
                    for tally in tallies {
                        for number in tally.numbers() {
                            out.f32(number);
                        }
                    }
                }
            });
        }
        out.section(Tag::Familiar, |out| {
            for word in self.familiar.words() {
                out.u64(word);
            }
        });
        out.u64(checksum(&out.0));
        out.0
    }

    /// Takes over what [`Detector::snapshot`] returned; to be called before the first tick, and after
    /// [`Detector::set_clock`].
    ///
    /// # Errors
    ///
    /// It is no snapshot, damaged, of another version or of other attributes. Then nothing changes.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        if bytes.len() > BYTES_MAX {
            return Err(RestoreError::NoSnapshot);
        }
        let (body, sum) = bytes
            .split_last_chunk::<8>()
            .ok_or(RestoreError::NoSnapshot)?;
        let mut reader = Reader(body);
        if reader.u64() != Ok(MAGIC) {
            return Err(RestoreError::NoSnapshot);
        }
        let version = u16::from_le_bytes(reader.take()?);
        if version != VERSION {
            return Err(RestoreError::Version(version));
        }
        if checksum(body) != u64::from_le_bytes(*sum) {
            return Err(RestoreError::Damaged);
        }
        if reader.u64()? != fingerprint(&self.schema, &self.columns) {
            return Err(RestoreError::OtherAttributes);
        }
        let mut restored = Restored {
            reference: Reference::new(self.spec.warmup, &self.columns, 1),
            instances: Usual::new(self.spec.warmup),
            addresses: Usual::new(self.spec.warmup),
            familiar: None,
            written: 0.0,
        };
        restored.reference.take_clock(&self.reference);
        while !reader.0.is_empty() {
            let [tag] = reader.take()?;
            let length = u32::from_le_bytes(reader.take()?) as usize;
            let (section, rest) = reader
                .0
                .split_at_checked(length)
                .ok_or(RestoreError::Damaged)?;
            reader = Reader(rest);
            restored.take(tag, Reader(section), self.columns.len())?;
        }
        let columns = self.columns.len();
        restored
            .reference
            .resume(restored.written, LEVEL_KEPT, columns);
        self.reference = restored.reference;
        self.instances = restored.instances;
        self.addresses = restored.addresses;
        if let Some(words) = restored.familiar {
            self.familiar.restore(words.into_iter());
        }
        Ok(())
    }
}

/// What was read so far.
struct Restored {
    reference: Reference,
    instances: Usual,
    addresses: Usual,
    familiar: Option<Vec<u64>>,
    written: f64,
}

impl Restored {
    /// Reads one section; one with an unknown tag is another's business.
    fn take(
        &mut self,
        tag: u8,
        mut section: Reader<'_>,
        columns: usize,
    ) -> Result<(), RestoreError> {
        let Some(tag) = TAGS.into_iter().find(|known| *known as u8 == tag) else {
            return Ok(());
        };
        match tag {
            Tag::Level => {
                self.written = section.number()?;
                let mut numbers = [0.0; 3];
                for number in &mut numbers {
                    *number = section.number()?;
                }
                self.reference.set_numbers(numbers);
            }
            Tag::Season => {
                let slots: Vec<f64> = section.all(Reader::short_number)?;
                let slots = slots.into_iter().map(|level| level as f32);
                self.reference.season_mut().restore(slots);
            }
            Tag::Anchors => {
                let anchors: Vec<(Literal, f64)> = section.all(|section| {
                    let [column] = section.take()?;
                    let value = u32::from_le_bytes(section.take()?);
                    let column = usize::from(column);
                    Ok((Literal { column, value }, section.short_number()?))
                })?;
                self.reference.growth_mut().restore(anchors.into_iter());
            }
            Tag::Leaves | Tag::Day => {
                while !section.0.is_empty() {
                    let key = section.key(columns)?;
                    let count = section.short_number()?;
                    self.reference
                        .remember(&key, count, matches!(tag, Tag::Day));
                }
            }
            Tag::Instances => read_usual(&mut self.instances, section, columns)?,
            Tag::Addresses => read_usual(&mut self.addresses, section, columns)?,
            Tag::Familiar => {
                let words: Vec<u64> = section.all(Reader::u64)?;
                if words.len() != KNOWN_WORDS {
                    return Err(RestoreError::Damaged);
                }
                self.familiar = Some(words);
            }
        }
        Ok(())
    }
}

/// Reads everybody's tallies, then those of each row.
fn read_usual(
    usual: &mut Usual,
    mut section: Reader<'_>,
    columns: usize,
) -> Result<(), RestoreError> {
    let mut first = true;
    while !section.0.is_empty() {
        let who = section.key(columns)?;
        let mut tallies = [Tally::default(); 3];
        for tally in &mut tallies {
            let mut numbers = [0.0; Tally::NUMBERS];
            for number in &mut numbers {
                *number = section.short_number()?;
            }
            *tally = Tally::of_numbers(numbers);
        }
        usual.remember((!first).then_some(who), tallies);
        first = false;
    }
    Ok(())
}

/// Names, sides and kinds of the attributes that take part: hashes of other attributes mean nothing.
pub(super) fn fingerprint(schema: &crate::attribute::Schema, columns: &Columns) -> u64 {
    let words: Vec<String> = columns
        .iter()
        .map(|column| {
            let name = schema.name(column.attribute);
            format!("{name} {:?} {}", column.side, column.version)
        })
        .collect();
    checksum(words.join(";").as_bytes())
}

/// FNV-1a (Fowler, Noll and Vo) over words: finds damage, not malice.
fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let last = rest
        .iter()
        .fold(rest.len() as u64, |word, byte| word << 8 | u64::from(*byte));
    words
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .chain([last])
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, word| {
            let hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
            hash ^ (hash >> 29)
        })
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn u64(&mut self, word: u64) {
        self.bytes(&word.to_le_bytes());
    }

    fn f64(&mut self, number: f64) {
        self.bytes(&number.to_le_bytes());
    }

    fn f32(&mut self, number: f64) {
        self.bytes(&(number as f32).to_le_bytes());
    }

    fn key(&mut self, key: &LeafKey, columns: usize) {
        for column in 0..columns {
            self.bytes(&key.value(column).to_le_bytes());
        }
    }

    fn section(&mut self, tag: Tag, write: impl FnOnce(&mut Self)) {
        let mut section = Self::default();
        write(&mut section);
        self.bytes(&[tag as u8]);
        let length = u32::try_from(section.0.len()).unwrap_or(u32::MAX);
        self.bytes(&length.to_le_bytes());
        self.bytes(&section.0);
    }
}

#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], RestoreError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(RestoreError::Damaged)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u64(&mut self) -> Result<u64, RestoreError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn number(&mut self) -> Result<f64, RestoreError> {
        sensible(f64::from_le_bytes(self.take()?))
    }

    fn short_number(&mut self) -> Result<f64, RestoreError> {
        sensible(f64::from(f32::from_le_bytes(self.take()?)))
    }

    fn key(&mut self, columns: usize) -> Result<LeafKey, RestoreError> {
        let mut values = [0; COLUMNS_MAX];
        for value in values.iter_mut().take(columns) {
            *value = u32::from_le_bytes(self.take()?);
        }
        Ok(LeafKey::of_values(values.into_iter()))
    }

    fn all<T>(
        mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, RestoreError>,
    ) -> Result<Vec<T>, RestoreError> {
        let mut all = Vec::new();
        while !self.0.is_empty() {
            all.push(read(&mut self)?);
        }
        Ok(all)
    }
}

fn sensible(number: f64) -> Result<f64, RestoreError> {
    if number.is_finite() && number >= 0.0 {
        Ok(number)
    } else {
        Err(RestoreError::Damaged)
    }
}
