package keeper

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// oomScore makes the keeper the last but one process to be killed for memory.
const oomScore = "-999"

// protect does what can be done that the keeper neither dies nor waits when
// memory is short, and says what could not.
func protect() (exposed []string) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0); err != nil {
		exposed = append(exposed, fmt.Sprintf("may be killed when memory is short (oom_score_adj %s needs CAP_SYS_RESOURCE): %v", oomScore, err))
	}
	// What is touched stays: a page that must be read again could wait for a
	// device whose server is dead.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		exposed = append(exposed, fmt.Sprintf("may wait for its own pages when memory is short (mlockall needs CAP_IPC_LOCK): %v", err))
	}
	if flag, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0); err != nil || flag == 0 {
		exposed = append(exposed, "may wait for a volume's dirty pages when memory is short (PR_SET_IO_FLUSHER needs CAP_SYS_RESOURCE where the keeper is started)")
	}
	return exposed
}
