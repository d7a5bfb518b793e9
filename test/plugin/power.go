package plugin

import (
	"fmt"
	"slices"
	"syscall"
	"time"
)

// Freeze stops every process of the plugin where it is: supervisor, worker and
// keeper. Nothing of it writes any more; what the kernel has under way ends.
func (p *Process) Freeze() error {
	if err := p.Signal(syscall.SIGSTOP); err != nil { // first: it starts the others
		return fmt.Errorf("freeze the plugin: %w", err)
	}
	for _, o := range p.others() {
		if err := syscall.Kill(o.pid, syscall.SIGSTOP); err != nil {
			return fmt.Errorf("freeze process %d (%s): %w", o.pid, o.args, err)
		}
	}
	return nil
}

// CutPower ends every process of the plugin at once, without a chance to do
// anything more, and waits until they are gone.
func (p *Process) CutPower() {
	others := p.others()
	p.Kill()
	for _, o := range others {
		_ = syscall.Kill(o.pid, syscall.SIGKILL) // it may have gone with the first
	}
	for len(p.others()) > 0 {
		time.Sleep(time.Millisecond)
	}
}

// others are the plugin's processes but the first.
func (p *Process) others() []process {
	return slices.DeleteFunc(processes(p.Dir), func(o process) bool { return o.pid == p.PID() || !o.plugin(p.Dir) })
}

// Own reports whether a line of Leftovers is of this running plugin.
func (p *Process) Own(line string) bool {
	pids := []int{p.PID()}
	for _, o := range p.others() {
		pids = append(pids, o.pid)
	}
	return slices.ContainsFunc(pids, func(pid int) bool {
		var got int
		_, err := fmt.Sscanf(line, "process %d ", &got)
		return err == nil && got == pid
	})
}
