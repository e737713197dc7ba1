//! What crosses between ranks.
