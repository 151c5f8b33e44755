"""What travels between writers and readers: frozen records with one codec. No torch here."""
