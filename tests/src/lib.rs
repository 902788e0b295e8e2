//! Seatbelt tests.
