package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

const (
	calmLook = 300 * time.Millisecond
	calmIdle = 0.85
)

// calm waits until the processors have been idle for a moment, at most
// patience: on a machine with other work a figure means nothing.
func calm(ctx context.Context, patience time.Duration) error {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		before, err := processors()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(calmLook):
		}
		after, err := processors()
		if err != nil {
			return err
		}
		if (after.idle-before.idle)/(after.all-before.all) >= calmIdle {
			return nil
		}
	}
	return nil
}

type processorTime struct{ idle, all float64 }

// processors reads the first line of /proc/stat: user, nice, system, idle,
// iowait, irq, softirq, steal.
func processors() (t processorTime, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	var v [8]float64
	if _, err := fmt.Sscanf(line, "cpu %f %f %f %f %f %f %f %f", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6], &v[7]); err != nil {
		return t, fmt.Errorf("read /proc/stat: %w", err)
	}
	for _, x := range v {
		t.all += x
	}
	t.idle = v[3] + v[4]
	return t, nil
}
