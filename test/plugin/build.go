package plugin

import (
	"fmt"
	"os/exec"
)

// Build builds commands of this module into dir, with the race detector if the
// caller was built with it.
func Build(dir string, commands ...string) error {
	packages := make([]string, len(commands))
	for i, c := range commands {
		packages[i] = "cmd/" + c
	}
	return BuildTagged(dir, "", packages...)
}

// BuildTagged does so with packages of this module, by their directories, and
// with build tags.
func BuildTagged(dir, tags string, packages ...string) error {
	args := []string{"build", "-tags=" + tags, "-o", dir}
	if raceEnabled {
		args = append(args, "-race")
	}
	for _, p := range packages {
		args = append(args, "github.com/csi-vhdx/csi-driver-vhdx/"+p)
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("build %v: %w\n%s", packages, err, out)
	}
	return nil
}
