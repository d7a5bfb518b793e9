package events

// Event is one thing that an operator must know.
type Event struct {
	Reason  Reason
	Warning bool // else it is only good to know
	// Volume that it is about, by id; "": the whole node, or the driver.
	Volume  string
	Message string
}

// Reason is the short name under which kubectl lists an Event.
type Reason string

// The reasons. The reference page says what to do about each.
const (
	VolumeWaiting      Reason = "VolumeWaiting"
	VolumeQuarantined  Reason = "VolumeQuarantined"
	VolumePaused       Reason = "VolumePaused"
	VolumeReadOnly     Reason = "VolumeTakesNoWrites"
	FilesystemReadOnly Reason = "FilesystemReadOnly"
	VolumeDead         Reason = "VolumeDeviceLost"
	VolumeServed       Reason = "VolumeServedAgain"
	ImageCorrupt       Reason = "ImageCorrupt"
	WorkerReplaced     Reason = "WorkerReplaced"
	KeeperGone         Reason = "KeeperGone"
	KeeperBack         Reason = "KeeperBack"
	KeeperIncomplete   Reason = "KeeperIncomplete"
	PoolNotAnswering   Reason = "PoolNotAnswering"
	PoolAnswering      Reason = "PoolAnswering"
	PoolNearlyFull     Reason = "PoolNearlyFull"
	PoolFull           Reason = "PoolFull"
	PoolHasRoom        Reason = "PoolHasRoom"
)

// Reasons are all of them.
var Reasons = []Reason{
	VolumeWaiting, VolumeQuarantined, VolumePaused, VolumeReadOnly, FilesystemReadOnly, VolumeDead, VolumeServed, ImageCorrupt,
	WorkerReplaced, KeeperGone, KeeperBack, KeeperIncomplete,
	PoolNotAnswering, PoolAnswering, PoolNearlyFull, PoolFull, PoolHasRoom,
}
