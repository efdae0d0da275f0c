//! Followers of a learner: functions that receive published weights.

use std::error::Error;
use std::fmt;

use turnwise_trajectory::PolicyVersion;

use crate::Decoder;

/// A function that is called with the weights of each publication.
pub(crate) type Follower =
    Box<dyn FnMut(PolicyVersion, &Decoder) -> Result<(), Box<dyn Error + Send + Sync>> + Send>;

/// The followers of a learner, in order of registration.
#[derive(Default)]
pub(crate) struct Followers(Vec<Follower>);

impl Followers {
    pub(crate) fn add(&mut self, follower: Follower) {
        self.0.push(follower);
    }

    /// Calls all followers, until one returns an error.
    pub(crate) fn tell(
        &mut self,
        version: PolicyVersion,
        model: &Decoder,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.0.iter_mut().try_for_each(|follower| follower(version, model))
    }
}

impl fmt::Debug for Followers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Followers").field(&self.0.len()).finish()
    }
}
