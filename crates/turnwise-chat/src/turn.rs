use turnwise_trajectory::TokenId;

/// The turn itself: what was drawn before the first of the tokens that end one. What comes after is no part of it.
pub(crate) fn before_stop<'a>(drawn: &'a [TokenId], stop: &[TokenId]) -> &'a [TokenId] {
    drawn.split(|id| stop.contains(id)).next().unwrap_or_default()
}
