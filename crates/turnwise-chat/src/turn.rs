use turnwise_trajectory::TokenId;

/// Returns the turn itself: the tokens sampled before the first end token.
pub(crate) fn before_stop<'a>(drawn: &'a [TokenId], stop: &[TokenId]) -> &'a [TokenId] {
    drawn.split(|id| stop.contains(id)).next().unwrap_or_default()
}
