//! Where waiters are kept. Knows nothing of their order.

use crate::time::Instant;

/// Names one waiter for as long as it waits; afterwards it names nobody, never somebody else (but for
/// one chance in 2³² per reuse of its place).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    at: u32,
    generation: u32,
}

impl Key {
    pub(super) fn at(self) -> u32 {
        self.at
    }
}

/// One who waits.
#[derive(Debug)]
pub(super) struct Waiter<T> {
    pub(super) item: T,
    /// The flow's place in the table of flows.
    pub(super) flow: u32,
    pub(super) bytes: u64,
    pub(super) arrived: Instant,
    /// The how-manieth waiter it is.
    pub(super) number: u64,
    /// Whether it waited too long: it is in no flow any more, and will not be served.
    pub(super) is_aged: bool,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    waiter: Option<Waiter<T>>,
}

/// All waiters: a slab that grows to the most that ever waited, and allocates no more once there.
#[derive(Debug)]
pub(super) struct Waiters<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T> Waiters<T> {
    pub(super) fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, waiter: Waiter<T>) -> Key {
        if let Some(at) = self.free.pop()
            && let Some(place) = self.places.get_mut(at as usize)
        {
            place.waiter = Some(waiter);
            let generation = place.generation;
            return Key { at, generation };
        }
        let at = self.places.len() as u32;
        self.places.push(Place {
            generation: 0,
            waiter: Some(waiter),
        });
        Key { at, generation: 0 }
    }

    pub(super) fn get(&self, at: u32) -> Option<&Waiter<T>> {
        self.places.get(at as usize)?.waiter.as_ref()
    }

    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut Waiter<T>> {
        self.places.get_mut(at as usize)?.waiter.as_mut()
    }

    /// Returns whether the key's waiter still waits.
    pub(super) fn has(&self, key: Key) -> bool {
        let place = self.places.get(key.at as usize);
        place.is_some_and(|place| place.generation == key.generation && place.waiter.is_some())
    }

    pub(super) fn take(&mut self, at: u32) -> Option<Waiter<T>> {
        let place = self.places.get_mut(at as usize)?;
        let waiter = place.waiter.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(at);
        Some(waiter)
    }
}
