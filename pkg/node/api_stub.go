package node

import "context"

// Manager stages and publishes the volumes of one node.
type Manager struct{}

var errStub = ErrPending

// New opens the state directory. Call Recover before anything else.
func New(c Config) (*Manager, error) { return nil, errStub }

// Recover settles every journal entry of an earlier process.
func (m *Manager) Recover(ctx context.Context) ([]Recovered, error) { return nil, errStub }

// Stage makes the volume a device of this node and mounts its filesystem.
func (m *Manager) Stage(ctx context.Context, r StageRequest) error { return errStub }

// Unstage undoes Stage for one staging path.
func (m *Manager) Unstage(ctx context.Context, volumeID, stagingPath string) error { return errStub }

// Publish makes a staged volume appear at a target path.
func (m *Manager) Publish(ctx context.Context, r PublishRequest) error { return errStub }

// Unpublish undoes Publish.
func (m *Manager) Unpublish(ctx context.Context, volumeID, targetPath string) error { return errStub }

// Stats says how full the volume is. It never touches the share.
func (m *Manager) Stats(ctx context.Context, volumeID, path string) (Stats, error) {
	return Stats{}, errStub
}

// Expand makes image, device and filesystem follow the record's size, and
// returns the device's size.
func (m *Manager) Expand(ctx context.Context, volumeID, path string) (int64, error) {
	return 0, errStub
}

// Held reports whether this process has the volume's image open.
func (m *Manager) Held(volumeID string) bool { return false }

// CheckMkfsOptions says whether the options may be used for fsType: each must
// be one that mkfs of that type knows, and none may name a file or device.
func CheckMkfsOptions(fsType, options string) error { return nil }

// Shutdown flushes every staged volume and closes what nothing uses.
func (m *Manager) Shutdown(ctx context.Context) error { return errStub }
