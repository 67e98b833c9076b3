//! Network-namespace worlds that drive the real agent.
