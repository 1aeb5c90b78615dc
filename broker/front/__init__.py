"""The side of the broker that clients reach: who may connect, what they ask, what they are answered."""
