//! Seatbelt cli.
