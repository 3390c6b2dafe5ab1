package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
)

// Client speaks to the initiator of this host.
type Client struct {
	initiatorv1.InitiatorClient
	conn *grpc.ClientConn
}

// Dial returns a client of the initiator that listens on the unix socket. The error says what to do when there is none.
func Dial(socket string) (*Client, error) {
	if _, err := os.Stat(socket); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("initiator is not running: no socket at %s; start `aoe-csi initiator`, or name its socket with --socket", socket)
		}
		return nil, fmt.Errorf("initiator's socket: %w", err)
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("initiator's socket %s: %w", socket, err)
	}
	return &Client{InitiatorClient: initiatorv1.NewInitiatorClient(conn), conn: conn}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }
