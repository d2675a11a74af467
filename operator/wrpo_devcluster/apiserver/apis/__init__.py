"""What every part of the API server speaks of: requests, their options, errors."""
