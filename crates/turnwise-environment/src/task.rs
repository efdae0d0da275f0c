use std::fmt::{self, Debug, Write};

use serde::{Deserialize, Serialize};

use crate::Environment;

/// The stable name of a task: a hash of its content, equal wherever the content is equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskKey(String);

impl TaskKey {
    /// Returns the key of a content, which must describe the task completely.
    ///
    /// ```
    /// use turnwise_environment::TaskKey;
    ///
    /// assert_eq!(TaskKey::of("guess 1..=40 secret 7"), TaskKey::of("guess 1..=40 secret 7"));
    /// ```
    #[must_use]
    pub fn of(content: &str) -> Self {
        let mut key = String::with_capacity(32);
        write!(key, "{:032x}", fnv1a_128(content.as_bytes()))
            .expect("a string takes what is written");
        Self(key)
    }

    /// Returns the key as text: 32 hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Returns the Fowler–Noll–Vo 1a hash with 128 bits: it needs no dependency, and collisions are out of reach for any
/// task set.
fn fnv1a_128(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

/// Tasks that can be counted, named and played: immutable data, without the state of any episode.
///
/// # Contract
///
/// - `key` and `environment` depend on the index alone, and are defined for every index below `len`.
/// - Each call of `environment` returns a fresh environment that has not been reset.
///
/// # Example
///
/// Most task sets are a `Vec` of environments or [`Tasks`](crate::Tasks). A task set that makes its tasks on demand
/// implements the trait:
///
/// ```
/// use turnwise_environment::{Environment, TaskKey, TaskSet};
/// # use turnwise_environment::{Action, EnvironmentError, Observation, Step, async_trait};
/// #
/// # struct Sum(usize, usize);
/// #
/// # #[async_trait]
/// # impl Environment for Sum {
/// #     async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
/// #         Ok(format!("What is {} + {}?", self.0, self.1).into())
/// #     }
/// #
/// #     async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
/// #         let right = action.text.trim() == (self.0 + self.1).to_string();
/// #         Ok(Step::terminated(f64::from(u8::from(right))))
/// #     }
/// # }
///
/// /// The sums of all pairs of numbers below `n`.
/// struct Sums {
///     n: usize,
/// }
///
/// impl TaskSet for Sums {
///     fn name(&self) -> &str {
///         "sums"
///     }
///
///     fn len(&self) -> usize {
///         self.n * self.n
///     }
///
///     fn key(&self, index: usize) -> TaskKey {
///         TaskKey::of(&format!("{} + {}", index / self.n, index % self.n))
///     }
///
///     fn environment(&self, index: usize) -> Box<dyn Environment> {
///         Box::new(Sum(index / self.n, index % self.n))
///     }
/// }
///
/// let sums = Sums { n: 1000 };
/// assert_eq!(sums.len(), 1_000_000);
/// assert_ne!(sums.key(1), sums.key(1000)); // 0 + 1 and 1 + 0
/// ```
pub trait TaskSet: Send + Sync {
    /// Returns the environment's name in records: `[a-z0-9._-]`, at most 64 characters. In a [`Suite`](crate::Suite)
    /// the suite's name replaces it.
    fn name(&self) -> &str;

    /// Returns the version of rules and texts; trajectories are compared only within one version.
    fn version(&self) -> u32 {
        1
    }

    /// Returns the number of tasks.
    fn len(&self) -> usize;

    /// Returns whether the set is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the stable name of a task.
    fn key(&self, index: usize) -> TaskKey;

    /// Returns a fresh environment of a task.
    fn environment(&self, index: usize) -> Box<dyn Environment>;
}

/// The shortest task set: environments that are cloned for each episode; a task's key is the hash of its `Debug`
/// output.
impl<E: Environment + Clone + Debug + Sync + 'static> TaskSet for Vec<E> {
    fn name(&self) -> &'static str {
        let path = std::any::type_name::<E>();
        let path = path.split('<').next().unwrap_or(path);
        path.rsplit("::").next().unwrap_or(path)
    }

    fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn key(&self, index: usize) -> TaskKey {
        TaskKey::of(&format!("{:?}", self[index]))
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        Box::new(self[index].clone())
    }
}
