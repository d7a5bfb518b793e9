package plugin

import (
	"fmt"
	"os/exec"
)

// Build builds commands of this module into dir, with the race detector if the
// caller was built with it.
func Build(dir string, commands ...string) error {
	args := []string{"build", "-o", dir}
	if raceEnabled {
		args = append(args, "-race")
	}
	for _, c := range commands {
		args = append(args, "github.com/csi-vhdx/csi-driver-vhdx/cmd/"+c)
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("build %v: %w\n%s", commands, err, out)
	}
	return nil
}
