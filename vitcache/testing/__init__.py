"""What tests plant and look at; no other room imports it."""
