/// Our agent at Keylime's registrar, verifier and tenant.
mod our_agent;
