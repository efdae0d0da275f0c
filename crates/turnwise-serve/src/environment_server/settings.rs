//! What a server is told.

use std::net::{Ipv4Addr, SocketAddr};

/// The protocol of an [`EnvironmentServer`](crate::EnvironmentServer).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The Open Reward Standard, which TRL speaks: an environment is a prompt and tools.
    Ors,
    /// OpenEnv: actions and observations on a WebSocket, and the environment's tools by MCP.
    OpenEnv,
}

/// The largest request and the largest frame, in bytes.
pub(super) const MAX_BODY_BYTES: usize = 4 << 20;

/// The reward that comes with a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RewardForm {
    /// That of the call's own turn, so that the rewards of an episode sum to its reward.
    #[default]
    Turn,
    /// That of all turns so far, for trainers that take the last one, as TRL does.
    Total,
}

/// The settings of an [`EnvironmentServer`](crate::EnvironmentServer).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// The address to listen at. Port 0 takes a free one.
    pub address: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The reward of a call.
    pub reward_form: RewardForm,
    /// What clients have to send as their API key. Off loopback, one is made if none is set.
    pub token: Option<String>,
    /// The most episodes at a time.
    pub max_sessions: usize,
    /// The seconds until an episode is closed of which nothing is heard.
    pub session_timeout_s: u64,
}

impl ServerSettings {
    /// Returns settings for this machine alone, at a free port: 1,024 episodes, closed after 15 minutes of silence.
    #[must_use]
    pub fn new(protocol: Protocol) -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            protocol,
            reward_form: RewardForm::default(),
            token: None,
            max_sessions: 1_024,
            session_timeout_s: 900,
        }
    }
}
