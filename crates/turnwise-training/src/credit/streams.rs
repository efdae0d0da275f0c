use turnwise_trajectory::Trajectory;

/// A named number for each turn of each member of a group, with an invariant.
#[derive(Clone, Debug, PartialEq)]
pub struct CreditStream {
    /// The name in logs.
    pub name: &'static str,
    /// `[members][turns]`, in units of reward unless normalised.
    pub values: Vec<Vec<f64>>,
    /// The invariant of the values.
    pub conserves: Conservation,
}

/// An invariant of a stream, up to rounding.
#[derive(Clone, Debug, PartialEq)]
pub enum Conservation {
    /// The first turn of each member has the discounted sum of the member's rewards, `Σ_k gamma^k r_k`.
    DiscountedReturn {
        /// γ.
        gamma: f64,
    },
    /// The first turns of the members sum to 0: one member's gain is the others' loss.
    MembersSumToZero,
    /// All turns of all members sum to 0.
    TurnsSumToZero,
    /// Each turn is the weighted sum of other streams.
    SumOf(Vec<(&'static str, f64)>),
    /// No invariant.
    Nothing,
}

/// The credit of one group: the advantages that train, and the streams that they are computed from.
#[derive(Clone, Debug, PartialEq)]
pub struct CreditStreams {
    /// The parts of the advantages, in the order of their computation.
    pub parts: Vec<CreditStream>,
    /// The advantages that the tokens train with; the name is "advantage".
    pub advantage: CreditStream,
}

impl CreditStreams {
    /// Creates streams from the parts and the advantages computed from them.
    #[must_use]
    pub fn new(
        parts: Vec<CreditStream>,
        advantages: Vec<Vec<f64>>,
        conserves: Conservation,
    ) -> Self {
        let advantage = CreditStream { name: "advantage", values: advantages, conserves };
        Self { parts, advantage }
    }

    /// Iterates over all streams, the advantages last.
    pub fn all(&self) -> impl Iterator<Item = &CreditStream> {
        self.parts.iter().chain([&self.advantage])
    }

    /// Returns the stream of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&CreditStream> {
        self.all().find(|stream| stream.name == name)
    }

    /// Returns how far a stream deviates from its invariant; 0 up to rounding for every shipped credit.
    #[must_use]
    pub fn imbalance(&self, stream: &CreditStream, group: &[&Trajectory]) -> f64 {
        let firsts = || stream.values.iter().filter_map(|turns| turns.first());
        match &stream.conserves {
            Conservation::Nothing => 0.0,
            Conservation::MembersSumToZero => firsts().sum::<f64>().abs(),
            Conservation::TurnsSumToZero => stream.values.iter().flatten().sum::<f64>().abs(),
            Conservation::DiscountedReturn { gamma } => {
                let members = group.iter().filter(|member| !member.turns.is_empty());
                let missing = |(first, member): (&f64, &&Trajectory)| {
                    (first - discounted(&member.turn_rewards(), *gamma)).abs()
                };
                firsts().zip(members).map(missing).fold(0.0, f64::max)
            }
            Conservation::SumOf(weights) => self.missing_of_sum(stream, weights),
        }
    }

    fn missing_of_sum(&self, stream: &CreditStream, weights: &[(&'static str, f64)]) -> f64 {
        let sum = |member: usize, turn: usize| -> f64 {
            let part = |(name, weight): &(&str, f64)| {
                self.get(name).map_or(f64::NAN, |part| weight * part.values[member][turn])
            };
            weights.iter().map(part).sum()
        };
        let members = stream.values.iter().enumerate();
        members
            .flat_map(|(member, turns)| {
                turns.iter().enumerate().map(move |(turn, value)| (member, turn, value))
            })
            .map(|(member, turn, value)| (value - sum(member, turn)).abs())
            .fold(0.0, f64::max)
    }
}

/// Returns the discounted sum of rewards, added term by term from the front, unlike in the recursion that is checked.
fn discounted(rewards: &[f64], gamma: f64) -> f64 {
    let mut weight = 1.0;
    let mut sum = 0.0;
    for reward in rewards {
        sum += weight * reward;
        weight *= gamma;
    }
    sum
}
