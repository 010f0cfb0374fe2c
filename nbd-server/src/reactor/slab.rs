//! A fixed number of places for things, named by a number that is not soon used again.

/// Places for at most as many things as it was made for.
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    index_bits: u32,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    thing: Option<T>,
}

impl<T> Slab<T> {
    /// Room for `places` things.
    pub fn new(places: usize) -> Self {
        let count = u32::try_from(places).expect("a slab has few places");
        Self {
            places: (0..places)
                .map(|_| Place {
                    generation: 0,
                    thing: None,
                })
                .collect(),
            free: (0..count).rev().collect(),
            index_bits: count.next_power_of_two().ilog2().max(1),
        }
    }

    /// Whether no place is free.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// How many places are free.
    pub fn free_places(&self) -> usize {
        self.free.len()
    }

    /// How many places are taken.
    pub fn taken_places(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether all places are free.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// Puts a thing into a free place; its key, or `None` if there is none.
    pub fn insert(&mut self, thing: T) -> Option<u32> {
        let index = self.free.pop()?;
        let place = &mut self.places[index as usize];
        place.thing = Some(thing);
        Some(place.generation << self.index_bits | index)
    }

    /// Takes the thing of this key.
    pub fn remove(&mut self, key: u32) -> Option<T> {
        let index = self.index(key)?;
        let place = &mut self.places[index];
        let thing = place.thing.take()?;
        // The shift drops the high bits of a key, so they are dropped here too.
        place.generation = (place.generation + 1) & (u32::MAX >> self.index_bits);
        self.free.push(index as u32);
        Some(thing)
    }

    /// The thing of this key.
    pub fn get(&self, key: u32) -> Option<&T> {
        self.places[self.index(key)?].thing.as_ref()
    }

    /// The thing of this key.
    pub fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        let index = self.index(key)?;
        self.places[index].thing.as_mut()
    }

    /// All keys and things.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0_u32..).zip(&self.places).filter_map(|(index, place)| {
            let thing = place.thing.as_ref()?;
            Some((place.generation << self.index_bits | index, thing))
        })
    }

    /// All keys and things.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        let bits = self.index_bits;
        (0_u32..)
            .zip(&mut self.places)
            .filter_map(move |(index, place)| {
                let thing = place.thing.as_mut()?;
                Some((place.generation << bits | index, thing))
            })
    }

    /// The key of the first thing that fits.
    pub fn find(&self, fits: impl Fn(&T) -> bool) -> Option<u32> {
        let mut found = self.iter().filter(|(_, thing)| fits(thing));
        found.next().map(|(key, _)| key)
    }

    fn index(&self, key: u32) -> Option<usize> {
        let index = (key & !(u32::MAX << self.index_bits)) as usize;
        let place = self.places.get(index)?;
        (place.generation == key >> self.index_bits).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_thing_that_went_finds_nothing() {
        let mut slab = Slab::new(3);
        let keys: Vec<u32> = (0..3).map(|n| slab.insert(n).unwrap()).collect();
        assert!(slab.insert(9).is_none() && slab.is_full());
        assert_eq!(slab.remove(keys[1]), Some(1));
        let new = slab.insert(7).unwrap();
        assert_ne!(new, keys[1]);
        assert_eq!(slab.get(keys[1]), None);
        assert_eq!(slab.remove(keys[1]), None);
        assert_eq!(slab.get(new), Some(&7));
        assert_eq!(slab.iter().count(), 3);
    }

    #[test]
    fn one_place_is_enough() {
        let mut slab = Slab::new(1);
        for n in 0..100 {
            let key = slab.insert(n).unwrap();
            assert_eq!(slab.remove(key), Some(n));
        }
        assert!(slab.is_empty());
    }
}
