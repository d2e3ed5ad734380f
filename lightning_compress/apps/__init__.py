"""What the commands do, a room for each: doctor, train, verify, bench, inspect, advise, compare."""
