//! A run-length encoded column.

use std::ops::Range;

/// Values of tokens in order, stored once for each run of equal neighbours.
///
/// Neighbouring runs always differ, so two columns are equal exactly if their values are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Runs<T> {
    /// The runs: each value with the index at which its run ends.
    runs: Vec<(T, u32)>,
}

impl<T> Default for Runs<T> {
    fn default() -> Self {
        Self { runs: Vec::new() }
    }
}

impl<T: Copy + PartialEq> Runs<T> {
    /// Builds a column from a file's runs. The runs stay compressed, so that an untrusted length allocates nothing.
    pub(crate) fn of(name: &str, lengths: Vec<(T, usize)>, n: usize) -> Result<Self, String> {
        let mut total = lengths.iter().map(|(_, length)| *length);
        if total.try_fold(0_usize, usize::checked_add) != Some(n) {
            return Err(format!("the runs of {name} do not cover {n} tokens"));
        }
        let mut runs = Self::default();
        for (value, length) in lengths {
            runs.push(value, length);
        }
        Ok(runs)
    }

    pub(crate) fn len(&self) -> usize {
        self.runs.last().map_or(0, |(_, end)| *end as usize)
    }

    pub(crate) fn push(&mut self, value: T, n: usize) {
        if n == 0 {
            return;
        }
        let end = u32::try_from(self.len() + n).expect("a span has fewer than 2^32 tokens");
        match self.runs.last_mut() {
            Some((last, last_end)) if *last == value => *last_end = end,
            Some(_) => self.runs.push((value, end)),
            None => {
                // Most columns have one run, and the smallest growth of a vector is four.
                self.runs.reserve_exact(1);
                self.runs.push((value, end));
            }
        }
    }

    /// Returns the value of a token.
    ///
    /// # Panics
    /// Panics if `index` is out of range.
    pub(crate) fn get(&self, index: usize) -> T {
        let run = self.runs.partition_point(|(_, end)| *end as usize <= index);
        self.runs[run].0
    }

    /// Iterates over every token's value, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.lengths().flat_map(|(value, n)| std::iter::repeat_n(value, n))
    }

    /// Iterates over every run's value and length, in order.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = (T, usize)> + '_ {
        let mut start = 0;
        self.runs.iter().map(move |(value, end)| {
            let n = (*end - start) as usize;
            start = *end;
            (*value, n)
        })
    }

    /// Sets the tokens of a range to one value.
    pub(crate) fn set(&mut self, range: &Range<usize>, value: T) {
        let mut changed = Self::default();
        let mut start = 0;
        for (old, n) in self.lengths() {
            let end = start + n;
            let (from, to) = (range.start.clamp(start, end), range.end.clamp(start, end));
            changed.push(old, from - start);
            changed.push(value, to.saturating_sub(from));
            changed.push(old, end - to.max(from));
            start = end;
        }
        *self = changed;
    }

    pub(crate) fn shrink_to_fit(&mut self) {
        self.runs.shrink_to_fit();
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.runs.capacity() * size_of::<(T, u32)>()
    }
}

impl<T: Copy + PartialEq> Runs<Option<T>> {
    /// Like [`Runs::of`], for a column that a file omits if no token has a value.
    pub(crate) fn of_optional(
        name: &str,
        lengths: Vec<(Option<T>, usize)>,
        n: usize,
    ) -> Result<Self, String> {
        Self::of(name, if lengths.is_empty() { vec![(None, n)] } else { lengths }, n)
    }
}

impl<T: Copy + PartialEq> FromIterator<T> for Runs<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut runs = Self::default();
        for value in values {
            runs.push(value, 1);
        }
        runs
    }
}
