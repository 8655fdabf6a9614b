"""A reward behind HTTP: the server, what crosses, and who asks (`aegpo.rewards.RemoteReward`)."""
