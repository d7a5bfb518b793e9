package node

const killEnv = "NODE_TEST_KILL"

func runVictim(string) {}
