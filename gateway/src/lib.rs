//! Seatbelt gateway.
