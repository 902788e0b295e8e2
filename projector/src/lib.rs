//! Seatbelt projector.
