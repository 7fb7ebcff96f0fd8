"""From links to stored pictures: a unit of rows, and the later pass over what time may mend."""
